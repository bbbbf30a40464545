"""The arena against a simple model: a dict of what was put, who has it, and what it holds."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from manycore._memory.arena import Arena, ArenaFull, ArenaView, Block

MIB = 1 << 20
BUDGET = 24 * MIB
SIZES = st.one_of(
    st.integers(0, 3000),
    st.sampled_from([512, 513, 4096, 65536, 65537, 300_000, MIB, 3 * MIB, 16 * MIB - 64, 17 * MIB, 25 * MIB]),
)
Ref = tuple[int, int]


def pattern(seed: int, size: int) -> bytes:
    """Bytes that tell one block from another, at both ends and in between."""
    unit = (seed * 2654435761 % (1 << 64)).to_bytes(8, "little")
    return (unit * (size // 8 + 1))[:size]


class ArenaMachine(RuleBasedStateMachine):
    """Two readers (owners 1 and 2) and the allocator, one step at a time."""

    sent = Bundle("sent")
    held = Bundle("held")
    reserved = Bundle("reserved")

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(BUDGET, reserve_bytes=4 * MIB)
        self.views = {owner: ArenaView(os.dup(self.arena.fd), owner) for owner in (1, 2)}
        self.content: dict[Ref, bytes] = {}
        self.owner: dict[Ref, int] = {}  # 0: sent, nobody has it
        self.blocks: dict[Ref, Block] = {}
        self.count = 0

    @rule(target=sent, sizes=st.lists(SIZES, min_size=1, max_size=3))
    def put(self, sizes: list[int]) -> object:
        self.count += 1
        data = [pattern(self.count * 8 + i, size) for i, size in enumerate(sizes)]
        try:
            refs = self.arena.put(data)
        except ArenaFull:
            assert sum(sizes) + sum(map(len, self.content.values())) > BUDGET // 8  # waste has a bound
            return multiple()
        for ref, content in zip(refs, data, strict=True):
            assert ref not in self.content
            self.content[ref] = content
            self.owner[ref] = 0
        return multiple(*refs)

    @rule(target=reserved, size=SIZES)
    def reserve(self, size: int) -> object:
        self.count += 1
        try:
            block = self.arena.reserve(size)
        except ArenaFull:
            return multiple()
        data = pattern(self.count * 8, size)
        memoryview(block)[:] = data
        self.content[block.ref] = data
        self.owner[block.ref] = self.arena.owner
        self.blocks[block.ref] = block
        return block.ref

    @rule(target=sent, ref=consumes(reserved))
    def send(self, ref: Ref) -> Ref:
        assert self.blocks.pop(ref).send() == ref
        self.owner[ref] = 0
        return ref

    @rule(target=held, ref=sent, owner=st.sampled_from([1, 2]))
    def take(self, ref: Ref, owner: int) -> object:
        try:
            block = self.views[owner].take(ref)
        except OSError:
            assert self.owner.get(ref, -1) != 0
            return multiple()
        assert self.owner[ref] == 0
        assert bytes(block) == self.content[ref]
        self.owner[ref] = owner
        self.blocks[ref] = block
        return ref

    @rule(ref=held, seed=st.integers(0, 1000))
    def write(self, ref: Ref, seed: int) -> None:
        if ref in self.blocks:
            self.content[ref] = pattern(seed, ref[1])
            memoryview(self.blocks[ref])[:] = self.content[ref]

    @rule(ref=consumes(held))
    def drop(self, ref: Ref) -> None:
        if self.blocks.pop(ref, None) is not None:
            del self.content[ref], self.owner[ref]

    @rule(ref=sent)
    def release(self, ref: Ref) -> None:
        free = self.owner.get(ref, -1) == 0
        assert self.arena.release(ref) == free
        if free:
            del self.content[ref], self.owner[ref]

    @rule(keep=st.sampled_from([0, MIB]))
    def trim(self, keep: int) -> None:
        self.arena.trim(keep)
        assert self.arena.stats().idle_bytes <= keep

    @invariant()
    def holds(self) -> None:
        assert self.arena._valid() is None
        stats = self.arena.stats()
        assert stats.blocks == len(self.content)
        assert sum(map(len, self.content.values())) <= stats.resident_bytes <= BUDGET
        for ref, block in self.blocks.items():
            assert bytes(block) == self.content[ref]

    def teardown(self) -> None:
        self.blocks.clear()
        for ref in [ref for ref, owner in self.owner.items() if owner == 0]:
            assert self.arena.release(ref)
        self.arena.trim()
        assert self.arena.stats().blocks == 0
        assert self.arena.stats().resident_bytes == 0


ArenaMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestArena = ArenaMachine.TestCase
