"""The peers: one adapter file a library. `ALL` is in the order of the table's columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import (
    billiard,
    dask,
    faster_fifo,
    joblib,
    loky,
    mpire,
    pebble,
    ray,
    standard,
    subject,
)

if TYPE_CHECKING:
    from benchmarks.peers.base import Peer

ALL: tuple[Peer, ...] = (
    *subject.PEERS,
    *standard.PEERS,
    *billiard.PEERS,
    *loky.PEERS,
    *pebble.PEERS,
    *mpire.PEERS,
    *joblib.PEERS,
    *faster_fifo.PEERS,
    *ray.PEERS,
    *dask.PEERS,
)

BY_NAME: dict[str, Peer] = {peer.name: peer for peer in ALL}
