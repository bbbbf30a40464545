"""Bytes between processes.

segment.py       nameless shared memory that can be sent to running processes
cells.py         small pieces of it, for locks and counters
arena.py         recycled blocks for the bytes of tasks and results
sealed.py        objects that are placed once and read by many
shared_array.py  NumPy arrays in a segment
bells.py         waiting for several things at once; loops.py, in an event loop
available.py     how much memory is left
modules.py       modules that another thread may be importing
codec.py         pickles, with their large buffers beside them
by_value.py      functions and classes that cannot be imported where they go
"""
