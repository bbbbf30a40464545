"""The child's side of `ZygotePopen`: from bytes and descriptors to a running `Process` object."""

from __future__ import annotations

# The same as `signal`, but without its enumerations: they write to, and so copy, many pages.
import _signal  # type: ignore[import-not-found]
import marshal
from multiprocessing import process, util

from manycore._launch import main_module
from manycore._memory import codec

__all__ = ["InheritedFd", "main"]

_inherited_fds: list[int] = []


class InheritedFd:
    """Stands for a descriptor in a pickle that goes to a new child, which finds it by its place in a list."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        """The descriptor, in the child."""
        return _inherited_fds[self.index]


def main(payload: bytes, fds: list[int]) -> int:
    """Run the process object that `payload` holds.

    Args:
        payload: The length of a head (4 bytes), the head (a dict of the parent's settings), and the codec's
            bytes of the process object.
        fds: The parent's pidfd; the resource tracker's pipe, if the head says so; those of the process object.

    Returns:
        The exit code.
    """
    size = int.from_bytes(payload[:4], "little")
    head = marshal.loads(payload[4 : 4 + size])  # noqa: S302  # from our own parent
    parent = fds[0]
    rest = fds[1:]
    if head["tracker"]:
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._fd = rest.pop(0)  # type: ignore[attr-defined]
    _inherited_fds[:] = rest
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        current.name = head["name"]
        current.authkey = head["authkey"]
        if head["log_to_stderr"]:
            util.log_to_stderr(head["log_level"])
        elif head["log_level"] is not None:
            util.get_logger().setLevel(head["log_level"])
        codec.become_worker(head["main"])
        main_module.install(head["where"])
        process_obj = codec.loads(memoryview(payload)[4 + size :])
    finally:
        del current._inheriting  # type: ignore[attr-defined]
    return process_obj._bootstrap(parent_sentinel=parent)  # type: ignore[no-any-return]
