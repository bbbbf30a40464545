"""A receiver for the codec's tests: a fresh process that calls what it is sent, and answers.

Run as `python codec_worker.py HEX`, HEX being the pickled description of the sender's `__main__`.
A request is two lengths, a function, its arguments; an answer is a length and (ok, value or traceback).
"""

import pickle
import struct
import subprocess
import sys
import traceback

from manycore._memory import codec


def serve() -> None:
    """Answers requests until the input ends."""
    codec.become_worker(pickle.loads(bytes.fromhex(sys.argv[1])))
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
        self.process = subprocess.Popen([sys.executable, __file__, main], stdin=-1, stdout=-1)

    def call(self, function, *args):
        data, arguments = codec.dump_function(function), codec.dumps(args)
        self.process.stdin.write(struct.pack("QQ", len(data), len(arguments)) + data + arguments)
        self.process.stdin.flush()
        (size,) = struct.unpack("Q", self.process.stdout.read(8))
        ok, value = codec.loads(self.process.stdout.read(size))
        if not ok:
            raise RuntimeError(value)
        return value

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()


if __name__ == "__main__":
    serve()
