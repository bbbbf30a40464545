"""Libraries that take a pool or an executor, as their users use them: one file a library.

Each program runs in an interpreter of its own, so that what a library starts, or keeps for the next call, is not this
process's. It must end by itself, and say nothing on standard error but what is asked for.
"""
