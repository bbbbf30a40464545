"""The records between a process and its zygote, and the descriptors that both agree on.

One record is one message of a SOCK_SEQPACKET pair, so it arrives whole or not at all. Its body is a
`marshal` tuple: both sides are the same interpreter, and marshal needs no import. What does not fit
travels in a memfd beside it. What the zygote's core sends (`_native/c/brood.h`) is numbers, as shown: of a
report the kind is the first of 8 bytes, and the numbers are doubles; else they are integers of 8 bytes.

    request  (LAUNCH, id, entry, payload | None, title, standard, linger, told, context | None, or the pid of a spare)
                 descriptors: the standard ones that are open, the payload's memfd, the caller's
             (PRELOAD, modules, context | None, told)
             (OWN_GROUP, id)                when this child ends, its process group ends too
             (END,)                         kill every child at once, and exit
             numbers: pid                   to a spare: exit
             (LONG, id)                     the request itself is in a memfd, the first descriptor
    a spare  numbers: generation, pid, ns   from the zygote to the parent, as soon as it is forked (`spares.py`)
    report   (STARTED, id, pid, pidfd sent) from the child itself, before it runs anything of the caller's
             (WORDS, id, stack, native stack)   of one that a fatal signal ended, before its EXITED
             EXITED, numbers: id, pid, status, user s, system s, peak bytes, wall s
             GONE, numbers: pid             a spare has ended, and had taken no request
             (FAILED, id, errno, text)      there is no such child and never will be
             (PRELOAD_FAILED, module, text)
"""

from __future__ import annotations

# Kinds of request.
LAUNCH = 1
PRELOAD = 2
OWN_GROUP = 3
END = 4
LONG = 5

# Kinds of report.
STARTED = 11
EXITED = 12
FAILED = 13
PRELOAD_FAILED = 14
GONE = 15
WORDS = 16
NUMBERS_AT = 8

# The zygote's descriptors: given to it when it is executed.
CONTROL_FD = 3  # its end of the socket pair
LIFELINE_FD = 4  # read end of the pipe whose write ends the parent and its zygotes hold: the children's
PARENT_FD = 5  # the parent's pidfd
STACK_FD = 6  # in zygote and children: the memfd into which faulthandler writes
LIFELINE_WRITE_FD = 7  # the zygote's write end of that pipe
PARENT_PIPE_FD = 8  # read end of the pipe whose only write end is the parent's: the zygote's own lifeline
SLOT_FDS = (9, 10)  # of the sockets between the parent and spares, the spares' ends, and in the zygote
PEN_FDS = (11, 12)  # the parent's ends, in the zygote as well
KEEPER_FD = 13  # in zygote and children: their end of the keeper's sockets (`_memory/keeper.py`)
KEPT_FD = 14  # the keeper's end, where this zygote is the keeper

MAX_RECORD_BYTES = 128 * 1024  # Linux takes up to 208 KiB by default; half of it keeps room in the queue
MAX_INLINE_BYTES = 16 * 1024  # a longer payload goes in a memfd: twice as quick as the socket from about here
MAX_FDS = 240  # the kernel takes 253 a message (SCM_MAX_FD); the rest are ours

END_SIGNAL = 61  # SIGRTMAX - 3: the parent is gone; for children of the standard methods, and a zygote that imports
STACK_SIGNAL = 62  # SIGRTMAX - 2: makes a child write the Python stacks of its threads
