"""A receiver for the codec's tests: a fresh process that calls what it is sent, and answers.

Run as `python codec_worker.py HEX`, HEX being the pickled description of the sender's `__main__`.
It imports nothing of a test's, and asserts that the codec brings in nothing heavy.
A request is two lengths, a function, its arguments; an answer is a length and (ok, value or traceback).
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import traceback
from typing import Any, Self

from manycore._memory import codec


def serve() -> None:
    """Answers requests until the input ends."""
    codec.become_worker(pickle.loads(bytes.fromhex(sys.argv[1])))
    heavy = {"numpy", "asyncio", "concurrent.futures", "multiprocessing", "logging", "cloudpickle"} & set(sys.modules)
    assert not heavy, heavy
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := requests.read(16):
        function_size, arguments_size = struct.unpack("QQ", head)
        function, arguments = requests.read(function_size), requests.read(arguments_size)
        try:
            answer = (True, codec.load_function(function)(*codec.loads(arguments)))
        except BaseException:
            answer = (False, traceback.format_exc())
        try:
            data = codec.dumps(answer, to_parent=True)
        except Exception:
            data = codec.dumps((False, traceback.format_exc()))
        answers.write(struct.pack("Q", len(data)) + data)
        answers.flush()


class Worker:
    """The sender's side: `worker.call(function, *args)` runs it over there."""

    def __init__(self) -> None:
        main = pickle.dumps(codec.describe_main()).hex()
        self.process = subprocess.Popen([sys.executable, __file__, main], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout

    def call(self, function: Any, *args: Any) -> Any:
        data, arguments = codec.dump_function(function), codec.dumps(args)
        self.requests.write(struct.pack("QQ", len(data), len(arguments)) + data + arguments)
        self.requests.flush()
        (size,) = struct.unpack("Q", self.answers.read(8))
        ok, value = codec.loads(self.answers.read(size))
        if not ok:
            raise RuntimeError(value)
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.requests.close()
        self.process.wait(timeout=10)
        self.answers.close()


if __name__ == "__main__":
    serve()
