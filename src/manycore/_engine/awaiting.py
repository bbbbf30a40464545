"""Waiting for calls and maps in an event loop: asyncio's, or trio's, and so anyio's over either. No thread waits.

    the loop's thread                                  whoever collects results
    pause: arm(wake), then the task sleeps             wake() -> "call this soon" of the loop, which any thread may say
    the task goes on, and takes the result itself

What a loop's task takes is unpickled in its own thread, as with any consumer. A task that is cancelled while it waits
cancels what it waits for: what runs is ended with its worker, and a map sends nothing more.

Source: asyncio.wrap_future, and trio's "run_sync_soon" with "wait_task_rescheduled".
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore._engine.future import Future
    from manycore._engine.mapping import MapRun
    from manycore._engine.outcomes import Outcome

__all__ = ["next_outcome", "result_of"]

# How long results that are there already are given one after the other: then others of the loop's tasks have a turn.
TURN_SECONDS: Final = 0.005


def _trio() -> Any:
    """trio, where the caller runs in a task of its; else None."""
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return None
    return trio


async def pause(
    arm: Callable[[Callable[[], object]], object], cancel: Callable[[], object], deadline: float | None = None
) -> None:
    """Sleep until woken, or until the deadline.

    Args:
        arm: Called with the function that wakes, which any thread may call at any time, and more than once.
        cancel: Called when the waiting task is cancelled.
        deadline: On `time.monotonic`; None = never.
    """
    trio = _trio()
    if trio is None:
        await _pause_asyncio(arm, cancel, deadline)
    elif deadline is None:
        await _pause_trio(trio, arm, cancel)
    else:
        with trio.move_on_after(max(0.0, deadline - time.monotonic())) as scope:
            await _pause_trio(trio, arm, lambda: None if scope.cancel_called else cancel())


async def _pause_asyncio(
    arm: Callable[[Callable[[], object]], object], cancel: Callable[[], object], deadline: float | None
) -> None:
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def set_woken() -> None:
        if not woken.done():
            woken.set_result(None)

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(set_woken)
        except RuntimeError:  # the loop has ended: nobody waits
            pass

    timer = None if deadline is None else loop.call_later(max(0.0, deadline - time.monotonic()), set_woken)
    try:
        arm(wake)
        await woken
    except asyncio.CancelledError:
        cancel()
        raise
    finally:
        if timer is not None:
            timer.cancel()


async def _pause_trio(trio: Any, arm: Callable[[Callable[[], object]], object], cancel: Callable[[], object]) -> None:
    task = trio.lowlevel.current_task()
    token = trio.lowlevel.current_trio_token()
    waits = True

    def reschedule() -> None:
        nonlocal waits
        if waits:
            waits = False
            trio.lowlevel.reschedule(task)

    def wake() -> None:
        try:
            token.run_sync_soon(reschedule)
        except trio.RunFinishedError:
            pass

    def abort(_raise: object) -> Any:
        nonlocal waits
        waits = False
        cancel()
        return trio.lowlevel.Abort.SUCCEEDED

    arm(wake)
    await trio.lowlevel.wait_task_rescheduled(abort)


async def _give_way() -> None:
    """Let others of the loop's tasks run."""
    trio = _trio()
    await (asyncio.sleep(0) if trio is None else trio.lowlevel.checkpoint())


async def result_of(future: Future[Any]) -> Any:
    """The result of a call; cancelling the wait cancels the call, also one that runs."""
    if not future.done():
        await pause(lambda wake: future.add_done_callback(lambda _: wake()), lambda: future.cancel(running=True))
    if future.cancelled() and _trio() is None:
        raise asyncio.CancelledError
    return future.result()


async def next_outcome(run: MapRun, deadline: float | None = None) -> Outcome | None:
    """The next outcome of a map; None at the end. Cancelling the wait ends the map, with the items that run.

    Raises:
        TimeoutError: There was none by the deadline (`time.monotonic`).
    """
    now = time.monotonic()
    if now - run.turn_began > TURN_SECONDS:
        await _give_way()
        run.turn_began = time.monotonic()
    outcome = run.next_of_block()
    if outcome is not None:
        return outcome
    while not run.poll():
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError("no result yet")
        await pause(run.tell, lambda: run.abandon(running=True), deadline)
        run.turn_began = time.monotonic()
    return run.next_outcome()
