"""Measurements of manycore beside the libraries that do the same work.

__main__.py   python -m benchmarks: the command
spec.py       what a workload and a measure are, and what a running workload is given
runner.py     which measurement runs when (rounds interleaved), and the record of each
cage.py       one measurement in a fresh process that cannot outlive its bound
child.py      the inside of that process
summary.py    medians and ratios
report.py     the tables
machine.py    what machine this is; limits.c measures what it can do at best
tasks.py      the functions that the workers run
clock.py      repeating and timing, the same way everywhere
gate.py       processes that announce themselves and start together
peers/        one adapter a library
workloads/    one workload a file
"""
