"""Files in memory that have no name. A module of its own, since the zygote wants no more than this."""

from __future__ import annotations

import errno
import os

__all__ = ["create_memfd"]


def create_memfd(name: str) -> int:
    """A new, empty, nameless file in memory, closed on exec.

    A memfd; where the system refuses it (an old kernel, a sandbox), a file without a name in /dev/shm, which
    does the same but cannot be sealed, and is bounded by the size of that file system.

    Raises:
        OSError: The system refused (descriptor limit, no memory), with what was wanted in the message.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        refused = error
    if refused.errno in {errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL}:
        try:
            return os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)  # noqa: S108  (it has no name)
        except OSError as error:
            refused = error
    raise OSError(
        refused.errno, f"cannot create shared memory {name!r}: {os.strerror(refused.errno or 0)}"
    ) from refused
