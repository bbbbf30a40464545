"""python -m tests.conformance: the interpreter's suites against manycore, any start method, any selection.

    python -m tests.conformance                                      the default start method
    python -m tests.conformance --start-method fork --jobs 2
    python -m tests.conformance --suite futures '*Executor*'
    python -m tests.conformance --everything                         expected.txt is ignored

Run it in a folder from which `tests` can be imported, with an interpreter that has manycore installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import manycore
from tests.conformance import runner, suites


def main() -> int:
    """Runs and reports; 0 when nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("patterns", nargs="*", help="tests to run, as Class.method with * and ?")
    parser.add_argument("--suite", choices=["multiprocessing", "main", "futures"], default="multiprocessing")
    parser.add_argument("--start-method", help="default: manycore's own")
    parser.add_argument("--everything", action="store_true", help="also what expected.txt leaves out")
    parser.add_argument("--jobs", type=int, default=1, help="test classes at once")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that a test may take without an event")
    parser.add_argument("--list", action="store_true", help="only name the tests")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line a class, and whole tracebacks")
    options = parser.parse_args()
    method = options.start_method or getattr(manycore, "get_start_method", lambda: "fork")()
    if not suites.is_there(options.suite):
        print(f"this interpreter ships no such suite in {suites.TESTS}")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="manycore-conformance-"))
    try:
        return run(options, method, folder)
    finally:
        suites.remove(folder)


def run(options: argparse.Namespace, method: str, folder: Path) -> int:
    """Runs the suite that is written into `folder`."""
    suite = suites.write(options.suite, folder, method)
    tests, filled = runner.listing(suite)
    without = {} if options.everything else runner.expected(method)
    chosen = runner.select(tests, options.patterns, without)
    if options.list:
        for cls, methods in chosen.items():
            print(*(f"{cls}.{name}" for name in methods), sep="\n")
        return 0
    started = time.monotonic()
    total = runner.Report()
    with ThreadPoolExecutor(options.jobs) as threads:
        running = [
            threads.submit(runner.run_class, suite, cls, names, options.timeout) for cls, names in chosen.items()
        ]
        for cls, future in zip(chosen, running, strict=True):
            report = future.result()
            total.results += report.results
            total.left_behind += report.left_behind
            if options.verbose:
                counts = "  ".join(
                    f"{len(report.of(outcome)):4} {outcome}" for outcome in ("passed", "failed", "skipped")
                )
                left = f"  left behind: {len(report.left_behind)}" if report.left_behind else ""
                print(f"{cls:<48}{counts}{report.seconds:8.1f} s{left}", flush=True)
    for result in total.of("failed"):
        print(f"\n{result.test}\n{result.text}" if options.verbose else f"{result.test}: {result.reason}")
    if filled:
        print(f"from the standard library, not manycore: {', '.join(filled)}")
    for process in total.left_behind:
        print(f"left behind: {process}")
    left_out = sum(map(len, tests.values())) - sum(map(len, chosen.values()))
    print(f"{suite.name}: {len(chosen)} classes in {time.monotonic() - started:.0f} s, {left_out} tests not selected")
    passed, failed, skipped = (len(total.of(outcome)) for outcome in ("passed", "failed", "skipped"))
    print(f"conformance: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or total.left_behind else 0


if __name__ == "__main__":
    sys.exit(main())
