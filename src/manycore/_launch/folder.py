"""The folder in which a program's listeners have the files of their sockets, and its end however the program ends.

      the program, or a process of its tree             keeper: the root's zygote
      pymp-...: made, held open, locked  -- FOLDER -->  notes it
      killed                                            locks it, removes the files of dead sockets, and the folder

The folder is the standard library's (`multiprocessing.util.get_temp_dir`), which removes it at an orderly end.

Invariants:
    who uses a folder has it locked, and so has a fork, which shares the open file: while any of them lives, it stays
    nothing goes but sockets to which nobody listens, and the empty folder that a process of this tree told of: the
        same inode, the same user's, named pymp-..., reached by no symbolic link
If a process dies:
    one of the tree: its folder stays until the tree's end.
    the root: see above; a process of "fork", "spawn" or "forkserver" may have its folder for 0.3 s more.
    the keeper: the root's next zygote is told of the root's folder again. With both dead nobody removes it.
Not covered: a folder that a fork of the program still uses when the keeper goes; one in a file system without locks.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import time

from manycore._memory import keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["path", "remove"]

_PREFIX = b"pymp-"
_AGAIN_S = 0.01
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_held: set[tuple[int, str]] = set()  # process, path


def path() -> str:
    """This process's folder. A program that has no zygote gets one, for somebody must be there when it is killed."""
    from multiprocessing import util

    found = util.get_temp_dir()
    if (os.getpid(), found) not in _held:
        _held.add((os.getpid(), found))
        try:
            _guard(os.path.abspath(found))
        except OSError:  # then it goes at an orderly end alone
            pass
    return found


def _guard(found: str) -> None:
    from manycore._launch import first
    from manycore._launch.handle import high

    fd = high(os.open(found, _OPEN))  # never closed: at the end of the last process that has it, the folder may go
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    status = os.fstat(fd)
    if keeper.client_fd() < 0 or keeper.is_root():
        first.ensure_executed()
    keeper.tell_folder(os.fsencode(found), (status.st_dev, status.st_ino))


def remove(folders: Mapping[bytes, tuple[int, int]], until: float) -> None:
    """Remove the folders that nobody uses.

    Args:
        folders: Path -> device and inode.
        until: When not to wait any longer for those who still use one, as `time.monotonic`.
    """
    left = dict(folders)
    while True:
        left = {name: inode for name, inode in left.items() if _is_used(name, inode)}
        if not left or time.monotonic() >= until:
            return
        time.sleep(_AGAIN_S)


def _is_used(name: bytes, inode: tuple[int, int]) -> bool:
    """Remove a folder, or say that somebody uses it."""
    if not os.path.basename(name).startswith(_PREFIX):
        return False
    try:
        fd = os.open(name, _OPEN)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != inode or status.st_uid != os.geteuid():
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in os.listdir(fd):
            if stat.S_ISSOCK(os.stat(file, dir_fd=fd, follow_symlinks=False).st_mode):
                if _is_bound(f"/proc/self/fd/{fd}/{file}"):
                    return True
                os.unlink(file, dir_fd=fd)
        os.rmdir(name)
    except BlockingIOError:
        return True
    except OSError:  # somebody's file is in it
        pass
    finally:
        os.close(fd)
    return False


def _is_bound(file: str) -> bool:
    """Whether a process has the socket whose file this is. It is not disturbed: what is asked has another type."""
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        probe.connect(file)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    finally:
        probe.close()
    return True
