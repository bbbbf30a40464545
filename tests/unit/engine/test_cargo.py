"""Large payloads: a manifest's blocks are taken once or given back, never both."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pytest

from manycore._engine.cargo import INLINE_PICKLE_BYTES, Manifest, unpack
from manycore._memory import codec
from manycore._memory.arena import Arena, ArenaFull, ArenaView


@pytest.fixture
def arena() -> Arena:
    return Arena(64 << 20)


def send(arena: Arena, value: Any) -> Manifest:
    buffers: list[Any] = []
    return Manifest(arena, codec.dumps(value, buffers=buffers), buffers)


def receive(arena: Arena, manifest: Manifest) -> Any:
    return unpack(ArenaView(os.dup(arena.fd)), manifest.data).open()


def live_blocks(arena: Arena) -> int:
    return arena.stats().blocks


def test_an_array_arrives_writable_and_its_memory_goes_back(arena: Arena) -> None:
    manifest = send(arena, {"a": np.arange(100_000), "b": 1})
    value = receive(arena, manifest)
    value["a"][0] = 7
    assert value["a"][:3].tolist() == [7, 1, 2]
    assert live_blocks(arena) > 0
    del value, manifest
    gc.collect()
    assert live_blocks(arena) == 0


@pytest.mark.parametrize("size", [0, INLINE_PICKLE_BYTES, INLINE_PICKLE_BYTES + 1, 1 << 20])
def test_a_pickle_of_any_length(arena: Arena, size: int) -> None:
    assert receive(arena, send(arena, b"x" * size)) == b"x" * size


def test_many_buffers_in_order(arena: Arena) -> None:
    arrays = [np.full(10_000 + i, i) for i in range(40)]
    for sent, got in zip(arrays, receive(arena, send(arena, arrays)), strict=True):
        assert np.array_equal(sent, got)


def test_what_nobody_takes_goes_back_with_the_manifest(arena: Arena) -> None:
    manifest = send(arena, np.zeros(100_000))
    assert live_blocks(arena) > 0
    del manifest
    assert live_blocks(arena) == 0


def test_a_forgotten_manifest_leaves_its_blocks_to_the_receiver(arena: Arena) -> None:
    manifest = send(arena, np.ones(100_000))
    data = manifest.forget()
    del manifest
    value = unpack(ArenaView(os.dup(arena.fd)), data).open()
    assert value.sum() == 100_000


def test_taken_blocks_survive_their_manifest(arena: Arena) -> None:
    manifest = send(arena, np.ones(100_000))
    value = receive(arena, manifest)
    del manifest
    send(arena, np.zeros(100_000))  # would overwrite what had been given back
    assert value.sum() == 100_000


def test_no_room_keeps_nothing() -> None:
    small = Arena(1 << 20)
    with pytest.raises(ArenaFull):
        send(small, [np.zeros(100_000), np.zeros(1_000_000)])
    assert live_blocks(small) == 0
