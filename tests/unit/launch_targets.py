"""What the tests of launching run in their children; light, as each child imports it."""

from __future__ import annotations

import os
import signal
import sys

SIGNALS = ["SIGINT", "SIGTERM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGHUP"]


def report(payload: bytes, fds: list[int]) -> None:
    """What this process sees, as JSON, into the first descriptor."""
    import faulthandler
    import json
    from pathlib import Path

    with open(fds[0], "w", encoding="utf-8") as file:
        json.dump(
            {
                "payload": len(payload),
                "cwd": os.getcwd(),
                "variable": os.environ.get("MANYCORE_TEST_VARIABLE"),
                "path": sys.path,
                "argv": sys.argv,
                "main": sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("__")),
                "group": os.getpgid(0) == os.getpid(),
                "fds": sorted(int(name) for name in os.listdir("/proc/self/fd")),
                "title": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode(),
                "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
                "threads": len(os.listdir("/proc/self/task")),
                "modules": sorted(sys.modules),
                "umask": os.umask(0),
                "signals": {
                    **{name: signal.getsignal(signal.Signals[name]) for name in SIGNALS},
                    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
                    "faulthandler": faulthandler.is_enabled(),
                },
            },
            file,
        )


def exit_with(payload: bytes, fds: list[int]) -> int:
    return int(payload)


def leave(payload: bytes, fds: list[int]) -> None:
    sys.exit(payload.decode())


def fail(payload: bytes, fds: list[int]) -> None:
    raise ValueError(payload.decode())


def die(payload: bytes, fds: list[int]) -> None:
    os.kill(os.getpid(), int(payload))


def wait_for_end(payload: bytes, fds: list[int]) -> None:
    """Until the first descriptor ends."""
    while os.read(fds[0], 1):
        pass


def echo(payload: bytes, fds: list[int]) -> None:
    with open(fds[0], "wb") as file:
        file.write(payload)


def ignore_term(payload: bytes, fds: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(fds[0], b"r")
    os.read(fds[1], 1)


def fork_and_wait(payload: bytes, fds: list[int]) -> None:
    pid = os.fork()
    if pid:
        os.write(fds[0], str(pid).encode())
    while True:
        signal.pause()


def import_and_tell(payload: bytes, fds: list[int]) -> None:
    """Import modules by name; the names of those that were here already go into the first descriptor."""
    names = payload.decode().split()
    os.write(fds[0], " ".join(name for name in names if name in sys.modules).encode())
    for name in names:
        __import__(name)


def import_behind_another_file(payload: bytes, fds: list[int]) -> None:
    """Put the first descriptor in the place of one of the zygote's, as a program that closes them all may do."""
    from manycore._launch import wire

    os.dup2(fds[0], wire.STACK_FD)
    __import__(payload.decode())


def write(payload: bytes, fds: list[int]) -> None:
    os.write(fds[0], payload)


def tell_variable(payload: bytes, fds: list[int]) -> None:
    os.write(fds[0], os.environb.get(payload, b""))


def import_and_say_who_read(payload: bytes, fds: list[int]) -> int:
    """Import a module; 77 if no file of its was read for that."""
    name = payload.decode()
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    __import__(name)
    return 0 if any(os.path.basename(path).startswith(f"{name}.") for path in opened) else 77


def import_and_spoil(payload: bytes, fds: list[int]) -> None:
    """Import a module, and make its file one that is none."""
    module = __import__(payload.decode())
    with open(str(module.__file__), "w", encoding="utf-8") as file:
        file.write("value = (\n")


def import_and_replace(payload: bytes, fds: list[int]) -> None:
    """Import a module, have an object in its place that answers nothing, and an exit handler."""
    import atexit
    from pathlib import Path

    name, log = payload.decode().split()
    module = __import__(name)
    sys.modules[name] = module.Strange()
    atexit.register(lambda: Path(log).write_text("the exit handler", encoding="utf-8") and None)


def import_all_and_colorsys(payload: bytes, fds: list[int]) -> int:
    """77 if `colorsys` was here already."""
    if "colorsys" in sys.modules:
        return 77
    for name in [*payload.decode().split(), "colorsys"]:
        __import__(name)
    return 0


def work(payload: bytes, fds: list[int]) -> None:
    """Makes, changes and drops objects of all sizes; what came out, into the first descriptor."""
    os.write(fds[0], worked(int(payload)))


def worked(seed: int) -> bytes:
    """The same wherever it is done."""
    import gc
    import hashlib
    import json
    import random
    import threading

    draw = random.Random(seed)
    values: dict[int, object] = {}
    for round_ in range(3000):
        key = draw.randrange(400)
        match draw.randrange(6):
            case 0:
                values[key] = [draw.random() for _ in range(draw.randrange(300))]
            case 1:
                values[key] = {str(number): [number] for number in range(draw.randrange(100))}
            case 2:
                values[key] = chr(97 + round_ % 26) * draw.randrange(20_000)
            case 3:
                values.pop(key, None)
            case 4:
                values[key] = f"{key}" * draw.randrange(1, 60)
            case _:
                grown = values.get(key)
                if isinstance(grown, list):
                    grown.extend(range(draw.randrange(30_000)))
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()


def use_logging_and_threads(payload: bytes, fds: list[int]) -> None:
    """In a child whose zygote has both modules; what came out, into the first descriptor."""
    import logging
    from concurrent.futures import ThreadPoolExecutor

    logging.basicConfig(stream=os.fdopen(fds[0], "w"), format="%(message)s")
    with ThreadPoolExecutor() as threads:
        logging.getLogger("one").warning("%s", list(threads.map(lambda number: number * number, range(3))))
    if os.fork() == 0:
        logging.getLogger("another").debug("nobody hears this")
        os._exit(0)
    os.wait()
