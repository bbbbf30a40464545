"""A notebook without its browser: a real IPython kernel, spoken to as Jupyter does, and what it would show."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

if find_spec("ipykernel") is None:
    pytest.skip("ipykernel is not installed here", allow_module_level=True)

BOUND_S = 30.0

# `held` runs until the test says so, by the file whose name it is given.
SETUP = """
    import asyncio, os, time
    import manycore

    def square(n):
        return n * n

    def held(path, n=0):
        while not os.path.exists(path):
            time.sleep(0.005)
        return n

    pool = manycore.Pool(2)
"""

Message = dict[str, Any]


class Notebook:
    """A kernel and who speaks to it."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import KernelManager

        environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
        environment["IPYTHONDIR"] = str(folder)
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "kernel"))
        self.manager.start_kernel(env=environment, cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=BOUND_S)

    def close(self, *, now: bool = False) -> None:
        """End the kernel; `now` kills it, as a restart of one that hangs does."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)

    def run(self, cell: str, until: str = "", seen: Callable[[Message], None] | None = None) -> list[Message]:
        """What a cell shows.

        Args:
            cell: Its code.
            until: Standard output that is to come, maybe after the cell has ended.
            seen: Called with each message as it comes.
        """
        sent = self.client.execute(dedent(cell))
        messages: list[Message] = []
        idle = False
        while not idle or until not in text(messages):
            message = self.client.get_iopub_msg(timeout=BOUND_S)
            if message["parent_header"].get("msg_id") == sent:
                messages.append(message)
                idle = idle or message["content"].get("execution_state") == "idle"
                if seen is not None:
                    seen(message)
        self.client.get_shell_msg(timeout=BOUND_S)
        return messages

    def value(self, cell: str) -> str:
        """What a cell's last expression comes to."""
        shown: str = of(self.run(cell), "execute_result")[0]["data"]["text/plain"]
        return shown


def of(messages: list[Message], kind: str) -> list[dict[str, Any]]:
    return [message["content"] for message in messages if message["msg_type"] == kind]


def text(messages: list[Message]) -> str:
    return "".join(content["text"] for content in of(messages, "stream") if content["name"] == "stdout")


def bars(messages: list[Message]) -> list[str]:
    """What the one bar showed, one after the other: a single output that was updated in place."""
    (first,) = of(messages, "display_data")
    updates = of(messages, "update_display_data")
    assert {update["transient"]["display_id"] for update in updates} == {first["transient"]["display_id"]}
    assert all(bar["data"]["text/html"].startswith("<progress") for bar in [first, *updates])
    return [bar["data"]["text/plain"] for bar in [first, *updates]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Generator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("notebook"))
    try:
        assert not of(notebook.run(SETUP), "error")
        yield notebook
    finally:
        notebook.close()


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "go on"


def test_functions_of_cells_run_in_workers(kernel: Notebook) -> None:
    assert kernel.value("pool.map(square, range(4))") == "[0, 1, 4, 9]"
    assert kernel.value("manycore.map(lambda n: square(n) + 1, range(3), workers=2)") == "[1, 2, 5]"
    kernel.run("def square(n): return n ** 3")
    assert kernel.value("pool.map(square, range(4))") == "[0, 1, 8, 27]"
    assert kernel.value("await pool.apply_async(square, (3,))") == "27"
    assert kernel.value("[n async for n in pool.imap(square, range(3))]") == "[0, 1, 8]"


def test_what_workers_print_is_shown_below_the_cell(kernel: Notebook) -> None:
    shown = kernel.run("pool.apply(print, ('from a worker',))", until="from a worker\n")
    assert text(shown) == "from a worker\n"


def test_a_bar_is_one_output_that_is_updated(kernel: Notebook, flag: Path) -> None:
    updates = 0

    def seen(message: Message) -> None:
        nonlocal updates
        updates += message["msg_type"] == "update_display_data"
        if updates == 3:
            flag.touch()

    cell = f"pool.map(lambda n: held({str(flag)!r}, n) if n == 5 else n, range(40), 1, progress='tiles')[-1]"
    shown = kernel.run(cell, seen=seen)
    assert of(shown, "execute_result")[0]["data"]["text/plain"] == "39"
    assert not of(shown, "stream")
    drawn = bars(shown)
    assert 4 <= len(drawn) < 40
    assert all(bar.startswith("tiles  39/40  ") and bar.endswith("1 of 2 busy") for bar in drawn[:3]), drawn
    assert drawn[-1].startswith("tiles  40/40  in ")


def test_a_bar_shows_how_far_a_map_came_that_failed(kernel: Notebook, flag: Path) -> None:
    def seen(message: Message) -> None:
        if message["msg_type"] == "display_data":
            flag.touch()

    cell = f"""
        def fails(n):
            held({str(flag)!r})
            raise ValueError("no such tile")

        manycore.map(fails, range(1), workers=1, progress=True)
    """
    shown = kernel.run(cell, seen=seen)
    (error,) = of(shown, "error")
    assert (error["ename"], error["evalue"]) == ("ValueError", "no such tile")
    remote = "\n".join(error["traceback"])
    assert "fails(0) on worker 0" in remote
    assert 'raise ValueError("no such tile")\nValueError: no such tile' in remote
    assert bars(shown)[-1].startswith("1/1  1 failed  in ")


@pytest.mark.parametrize("call", ["pool.map(held, [{0!r}] * 8", "manycore.map(held, [{0!r}] * 8, workers=2"])
def test_an_interrupt_ends_the_cell_and_what_it_runs_and_nothing_else(
    kernel: Notebook, flag: Path, tmp_path: Path, call: str
) -> None:
    def seen(message: Message) -> None:
        if message["msg_type"] == "display_data":
            kernel.manager.interrupt_kernel()

    others = tmp_path / "the other call may go on"
    kernel.run(f"other = pool.apply_async(held, ({str(others)!r},)); before = pool.stats().workers_died")
    shown = kernel.run(call.format(str(flag)) + ", progress=True)", seen=seen)
    (error,) = of(shown, "error")
    assert error["ename"] == "KeyboardInterrupt"
    assert bars(shown)[-1].startswith("0/8  in ")
    assert kernel.value("pool.map(abs, range(3))") == "[0, 1, 2]"  # though what the cell ran is held for ever
    assert kernel.value("pool.stats().workers_died - before") == ("1" if call.startswith("pool") else "0")
    others.touch()
    kernel.run("other.get(30)")


def test_a_kernel_that_is_killed_leaves_no_worker(kernel: Notebook, tmp_path: Path, flag: Path) -> None:
    """As a restart of one that hangs does."""
    other = Notebook(tmp_path)
    killed = False
    try:
        other.run(SETUP)
        other.run(f"pool.apply(abs, (1,)); busy = pool.apply_async(held, ({str(flag)!r},))")
        workers = [os.pidfd_open(int(pid)) for pid in other.value("list(pool.stats().pids)").strip("[]").split(",")]
        other.close(now=True)
        killed = True
        for worker in workers:
            poll = select.poll()
            poll.register(worker, select.POLLIN)
            assert poll.poll(5000)
            os.close(worker)
    finally:
        if not killed:
            other.close(now=True)
