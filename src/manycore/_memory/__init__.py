"""Bytes between processes.

segment.py    nameless shared memory that can be sent to running processes
cells.py      small pieces of it, for locks and counters
arena.py      recycled blocks for the bytes of tasks and results
available.py  how much memory is left
"""
