"""What travels between the parent and its workers: the layout of a task's frame, and what a record says.

frame    = HEADER (where the function's pickle is, first item)  +  the pickled arguments,
           or SPOOLED where they are when they are too long for a slot
record   = status, (task, item), and a pickle; see `ring.ResultRing`
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Final

__all__ = [
    "AWAITED",
    "CALL",
    "CHUNK",
    "CLAIMS",
    "GUARDED",
    "HEADER",
    "IDLE",
    "INITIALIZING",
    "INIT_FAILED",
    "LEAVING",
    "LOG",
    "OK",
    "PACKED",
    "RAISED",
    "READY",
    "RETRY",
    "RETURNED",
    "SPOOLED",
    "STAR",
    "UNDECODABLE",
    "UNPICKLABLE",
    "WHERE",
]

HEADER: Final = Struct("<QII")  # the function's offset and length in the spool, the first item to run
WHERE: Final = Struct("<QQ")  # offset and length in the spool

# flags of a frame
CALL: Final = 0  # the payload is (args, kwargs)
CHUNK: Final = 1  # the payload is a list of items, each the function's only argument
STAR: Final = 2  # with CHUNK: each item is the tuple of its arguments
AWAITED: Final = 64  # with CHUNK: somebody waits for each single result
SPOOLED: Final = 4  # the payload is WHERE
CLAIMS: Final = 16  # flag of a record: it begins with the handles to shared memory in the pickle, see cargo.py
GUARDED: Final = 32  # of a frame: WHERE a guard is comes before the payload, see guard.py
RETRY: Final = 32  # flag of a record: the exception is one that the task's policy retries
IDLE: Final = 1  # the item of a LEAVING record: there was nothing to do
PACKED: Final = 8  # the payload is a manifest, see cargo.py; also a flag of a record

# status of a record
OK: Final = 0  # the pickle is the item's result
RAISED: Final = 1  # the item raised; the pickle is a failure
UNPICKLABLE: Final = 2  # the item's result could not be pickled; a failure
UNDECODABLE: Final = 3  # the frame could not be unpickled; a failure
READY: Final = 4  # the worker's initializer is done
INIT_FAILED: Final = 5  # it raised; a failure
LEAVING: Final = 6  # the worker ends in order
RETURNED: Final = 7  # the worker cannot reach what the task needs, has not begun it, and ends
LOG: Final = 8  # a log record of the worker's, whatever task it has: marshalled attributes, see log_source.py

# the item on a worker's page; DECODING is the ring's
INITIALIZING: Final = (1 << 64) - 2  # with no task: the worker's initializer runs
