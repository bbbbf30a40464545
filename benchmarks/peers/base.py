"""What an adapter offers. A peer is a library, or one face of it; a pool adapter is one open pool.

Adapters call the peer the way that its own documentation recommends, with default settings, and add
nothing that a user would not write. They import the peer only inside `Peer.pool` or `Peer.context`,
because its import time is part of what is measured.
"""

# ruff: noqa: ARG002 - what a peer does not offer is refused whatever it is asked

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.spec import Family, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Role = Literal["subject", "standard", "peer"]


class PoolAdapter:
    """One open pool of a peer. Methods that a peer has no counterpart for stay as they are here.

    Attributes:
        survives_death: False where the peer says that the death of a worker ends the pool, so that its user
            opens a new one at once.
        reruns_lost: True where the task of a worker that died runs again instead of failing.
    """

    survives_death: bool = True
    reruns_lost: bool = False

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Starts one call and returns a handle to it."""
        raise Unsupported("no submit")

    def result(self, handle: Any) -> Any:
        """Waits for the call of `handle` and returns or raises what it did."""
        raise Unsupported("no submit")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs one call and waits for it."""
        return self.result(self.submit(function, *args))

    def submit_all(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Submits one task for each tuple of arguments, then takes the results in order."""
        handles = [self.submit(function, *args) for args in arguments]
        return [self.result(handle) for handle in handles]

    def call_all(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Makes all these calls, in whatever way the peer has: for warming up, and where it does not matter."""
        return self.submit_all(function, arguments)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Maps in order with the peer's default chunk size."""
        raise Unsupported("no map")

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yields results as they come."""
        raise Unsupported("no unordered map")

    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        """Places `value` the peer's best way; returns what maps `function(value, item)` over items."""
        bound = partial(function, value)
        return lambda items: self.map(bound, items)

    def call_shared(self, function: Callable[[Any], Any], array: Any) -> Callable[[], Any]:
        """Places `array` the peer's best way; returns what runs `function(array)` in a worker and waits for it."""
        raise Unsupported("no shared objects for single calls")

    def close(self) -> None:
        """Closes the pool in order and waits until it is gone."""
        raise NotImplementedError


class Peer:
    """A library that takes part. Subclasses set the attributes and override what they offer.

    Attributes:
        name: The column's title, and the name on the command line.
        module: The module whose presence means that the library is installed.
        distribution: Its name in the package registry; empty for the standard library.
        role: "subject" is what is measured, "standard" the standard library, "peer" anyone else.
        families: Which workloads it takes part in.
    """

    name: str = ""
    module: str = ""
    distribution: str = ""
    role: Role = "peer"
    families: frozenset[Family] = frozenset({"pool"})

    def version(self) -> str | None:
        """Returns the installed version, "standard library", or None where it is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return None
        if not self.distribution:
            return "standard library"
        from importlib import metadata

        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return "unknown"

    def load(self) -> Any:
        """Imports the library."""
        return importlib.import_module(self.module)

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        """Imports the library and opens a pool of `workers` processes."""
        raise Unsupported(f"{self.name} has no pool")

    def context(self) -> Any:
        """Returns the namespace with Process, Lock, Queue and so on."""
        raise Unsupported(f"{self.name} has no processes and primitives")
