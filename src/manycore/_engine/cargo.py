"""Large payloads: what is too long for a slot or a record rides in an arena's blocks, and a manifest says where.

    sender                                          receiver
    dumps -> pickle, buffers of 64 KiB and more
    Arena.put(buffers, pickle) -> refs
    manifest: refs, and the pickle when it is short ==> take(refs) -> blocks; loads(pickle, buffers=blocks)

One copy in, none out: the blocks are the receiver's own memory from then on, and go back to the sender's arena
when the last array over them dies.

Invariants:
    a block is taken once, by the receiver of its manifest, or released by the sender's `Manifest`, never both:
    the arena refuses the second.
If a process dies: the receiver: the sender's arena reclaims what the dead had taken. The sender: what it had sent can
    still be taken, because the receiver has the arena's descriptor from the start.
"""

from __future__ import annotations

from struct import Struct

from manycore._memory import codec
from manycore._memory.segment import Claim

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from manycore._engine.spool import Range
    from manycore._memory.arena import Arena, ArenaView, Block, Ref

__all__ = ["INLINE_PICKLE_BYTES", "Manifest", "Parcel", "claim", "unpack", "with_claims"]

_HEAD: Final = Struct("<II")  # how many refs, and whether the pickle is in the last of them
_ALONE: Final = Struct("<IIQQ")  # the same with the one ref, of the pickle

_COUNT: Final = Struct("<Q")
_HANDLE: Final = Struct("<QQQQ")  # pid, descriptor, device, inode

# A pickle this short stays in the manifest: a block for it would cost more than its copy.
INLINE_PICKLE_BYTES: Final = 256


class Manifest:
    """Blocks on their way. While it lives, they are kept for their receiver; after that, what was not taken is free.

    Attributes:
        data: The bytes to send.
        range: Where they are in the spool, when they are too long for a frame.
    """

    __slots__ = ("_arena", "_refs", "data", "range")

    def __init__(self, arena: Arena, pickled: bytes, buffers: Sequence[Any]) -> None:
        """Copy into the arena.

        Raises:
            ArenaFull: No room; nothing was kept.
            OSError: Memory is short.
        """
        self._refs: list[Ref] = []
        self.range: Range | None = None
        self._arena = arena
        inside = len(pickled) > INLINE_PICKLE_BYTES
        if inside and not buffers:
            self._refs = arena.put((pickled,))
            self.data = _ALONE.pack(1, 1, *self._refs[0])
            return
        self._refs = arena.put([*buffers, pickled] if inside else buffers)
        numbers = [number for ref in self._refs for number in ref]
        head = _HEAD.pack(len(self._refs), inside) + Struct(f"<{len(numbers)}Q").pack(*numbers)
        self.data = head if inside else head + pickled

    def forget(self) -> bytes:
        """The bytes to send; the blocks are the receiver's, whatever becomes of this object."""
        self._refs = []
        return self.data

    def __del__(self) -> None:
        for ref in self._refs:
            self._arena.release(ref)


class Parcel:
    """What a manifest named, taken: a pickle and its buffers."""

    __slots__ = ("blocks", "claim", "error", "pickled")

    def __init__(self, pickled: bytes | memoryview | Block, blocks: list[Block], error: OSError | None = None) -> None:
        self.error = error  # why it could not be taken
        self.pickled = pickled
        self.blocks = blocks
        self.claim: Claim | None = None  # on shared memory that the pickle names

    @property
    def nbytes(self) -> int:
        """The bytes of the pickle and of its buffers."""
        return sum(memoryview(part).nbytes for part in (self.pickled, *self.blocks))

    def open(self) -> Any:
        """Rebuild the value; its large buffers are the blocks themselves."""
        if self.error is not None:
            raise self.error
        return codec.loads(memoryview(self.pickled), buffers=self.blocks)


def with_claims(owners: Sequence[Any], data: bytes) -> bytes:
    """Put before a record's bytes how to get the shared memory that its pickle names."""
    handles = [owner.handle() for owner in owners]
    return b"".join((_COUNT.pack(len(handles)), *(_HANDLE.pack(*handle) for handle in handles), data))


def claim(data: bytes) -> tuple[Claim, bytes]:
    """The other side: claim it, so that its sender may go before the pickle is loaded; the rest of the bytes."""
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + count * _HANDLE.size
    return Claim(_HANDLE.iter_unpack(data[_COUNT.size : end])), data[end:]


def unpack(view: ArenaView, data: bytes | memoryview) -> Parcel:
    """Take the blocks that a manifest names."""
    count, inside = _HEAD.unpack_from(data)
    if inside and count == 1:
        return Parcel(view.take(_ALONE.unpack_from(data)[2:]), [])
    numbers = Struct(f"<{2 * count}Q").unpack_from(data, _HEAD.size)
    blocks = [view.take((numbers[i], numbers[i + 1])) for i in range(0, 2 * count, 2)]
    if inside:
        return Parcel(blocks.pop(), blocks)
    return Parcel(memoryview(data)[_HEAD.size + 16 * count :], blocks)
