"""Programs that the chaos tests run: a head that all share, and what runs one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

METHODS = ["zygote", "fork", "spawn", "forkserver"]
LIMIT_S = 50

HEAD = """
import itertools, logging, os, resource, signal, subprocess, sys, threading, time
import manycore

METHOD = sys.argv[1]
context = manycore.get_context(METHOD)

def double(value):
    return 2 * value

def leave(code):
    os._exit(code)

def wait(connection):
    connection.send_bytes(b"here")
    threading.Event().wait()

def started(target=wait, **options):
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there,), **options)
    process.start()
    there.close()
    assert here.recv_bytes() == b"here"
    here.close()
    return process

def zygote():
    from manycore._launch import launcher
    return launcher.current()._zygote
"""


def run(
    tmp_path: Path,
    body: str,
    method: str = "zygote",
    prefix: Sequence[str] = (),
    traceback: bool = False,
    limit: float = LIMIT_S,
    **options: object,
) -> str:
    """The output of a program, which must succeed."""
    text = HEAD + "\n" + body
    program = tmp_path / "program.py"
    program.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "faulthandler", str(program), method],
        stdout=subprocess.PIPE,
        text=True,
        timeout=limit,
        check=False,
        **{"stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert traceback or "Traceback" not in (done.stderr or ""), done.stderr
    return str(done.stdout)
