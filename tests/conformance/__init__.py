"""The interpreter's own test suites, run against manycore.

    suites.py             rewrites a suite, read from the running interpreter, for manycore; into a scratch folder
    child.py              runs test methods in a process of their own and reports event by event
    runner.py             one child a test class; a watchdog; what crashed, hung, or was left behind
    expected.txt          the one list of tests that look at private details or are not expected to pass yet
    __main__.py           python -m tests.conformance: any suite, start method and selection
    test_suites.py        the default start method, under pytest

Nothing of the suites is kept here: they belong to the interpreter that runs them.
"""
