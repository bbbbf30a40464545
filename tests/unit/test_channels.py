"""Channels and broadcasts."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import manycore
from manycore import Broadcast, Channel, ChannelClosed, broadcast, select

STOPS = int(os.environ.get("MANYCORE_CHANNEL_STOPS", "6"))
FORK = multiprocessing.get_context("fork")


def started(target: Callable[..., Any], *args: Any) -> Any:
    """A running child."""
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


def joined(process: Any, code: int = 0) -> None:
    process.join(30)
    assert process.exitcode == code


class Thread(threading.Thread):
    """A thread that says what came of it."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__()
        self._call = run
        self.start()

    def run(self) -> None:
        try:
            self.result: Any = self._call()
        except Exception as error:
            self.result = error

    def get(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.result


def offered(channel: Channel) -> bool:
    """Whether somebody offers something; waits for it."""
    return select(channel, timeout=30) == [channel]


# Buffered


def test_a_channel_with_a_buffer() -> None:
    channel = Channel(2)
    channel.send(1)
    channel.send({"a": [2]})
    assert len(channel) == 2
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="could be sent"):
        channel.send(3, timeout=0.05)
    assert 0.05 <= time.monotonic() - began < 5
    with pytest.raises(TimeoutError):
        channel.send(3, timeout=0)
    channel.close()
    assert channel.closed
    with pytest.raises(ChannelClosed):
        channel.send(3)
    assert list(channel) == [1, {"a": [2]}]
    with pytest.raises(ChannelClosed):
        channel.recv()
    empty = Channel(1)
    with pytest.raises(TimeoutError, match="was received"):
        empty.recv(timeout=0.01)
    with pytest.raises(ValueError, match="capacity"):
        Channel(-1)
    with pytest.raises(manycore.TaskPicklingError, match="item"):
        empty.send(threading.Lock())


# Rendezvous


def test_a_rendezvous_ends_when_the_item_is_taken() -> None:
    channel = Channel()
    sender = Thread(lambda: channel.send("x"))
    assert offered(channel)
    assert sender.is_alive()
    assert channel.recv() == "x"
    assert sender.get() is None
    receiver = Thread(channel.recv)
    channel.send("y", timeout=30)
    assert receiver.get() == "y"


def test_what_nobody_takes_is_not_sent() -> None:
    channel = Channel()
    for timeout in (0, 0.02):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            channel.send("gone", timeout=timeout)
        assert timeout <= time.monotonic() - began < 5
    with pytest.raises(TimeoutError):
        channel.recv(timeout=0)
    sender = Thread(lambda: channel.send("there"))
    assert channel.recv(timeout=30) == "there"
    assert sender.get() is None


def test_a_send_that_does_not_wait_meets_a_receiver_that_does() -> None:
    channel = Channel()
    receiver = Thread(lambda: channel.recv(timeout=30))
    for _ in range(10_000):
        try:
            channel.send("x", timeout=0)
            break
        except TimeoutError:
            continue
    assert receiver.get() == "x"


def test_a_close_ends_all_waits() -> None:
    channel = Channel()
    sender = Thread(lambda: channel.send(1))
    assert offered(channel)
    second = Thread(lambda: channel.send(2))
    channel.close()
    assert isinstance(sender.get(), ChannelClosed)
    assert isinstance(second.get(), ChannelClosed)
    assert list(channel) == []
    other = Channel()
    receiver = Thread(other.recv)
    other.close()
    assert isinstance(receiver.get(), ChannelClosed)


def _echo(there: Channel, back: Channel) -> None:
    for item in there:
        back.send(item)
    back.close()


@pytest.mark.parametrize("capacity", [0, 1, 5])
def test_between_processes(capacity: int) -> None:
    there, back = Channel(capacity), Channel(capacity)
    process = started(_echo, there, back)
    array = np.arange(200_000)
    for item in [*range(200), array]:
        there.send(item)
        got = back.recv(timeout=30)
    np.testing.assert_array_equal(got, array)
    third = Channel(3)
    there.send(third)  # through a channel
    received = back.recv()
    received.send("in the third")
    assert third.recv() == "in the third"
    there.close()
    with pytest.raises(ChannelClosed):
        back.recv(timeout=30)
    joined(process)
    with manycore.Pool(1) as pool:  # as a task's argument
        result = pool.apply_async(_send, (there := Channel(), "from a pool"))
        assert there.recv(timeout=30) == "from a pool"
        result.get()


def _send(channel: Channel, item: Any) -> None:
    channel.send(item)


@pytest.mark.parametrize("capacity", [0, 3])
def test_many_senders_and_receivers(capacity: int) -> None:
    channel, results = Channel(capacity), manycore.Queue()
    receivers = [started(lambda: results.put(list(channel))) for _ in range(2)]

    def send(who: int) -> None:
        for index in range(500):
            channel.send((who, index))

    senders = [started(send, who) for who in range(3)]
    for process in senders:
        joined(process)
    channel.close()
    lists = [results.get(timeout=30) for _ in receivers]
    for process in receivers:
        joined(process)
    for taken in lists:
        for who in range(3):
            own = [index for sender, index in taken if sender == who]
            assert own == sorted(own)
    assert sorted(item for taken in lists for item in taken) == [(w, i) for w in range(3) for i in range(500)]


# In select


def test_select_receives_and_sends() -> None:
    one, other = Channel(1), Channel(1)
    receiving, sending = one.receiving(), other.sending("out")
    assert select(receiving, sending) == [sending]
    assert other.recv() == "out"
    one.send("in")
    other.send("full")
    assert select(receiving, sending) == [receiving]
    assert receiving.item == "in"
    assert not receiving.closed
    assert select(receiving, sending, timeout=0.01) == []
    one.close()
    assert select(receiving, sending) == [receiving]
    assert receiving.closed
    with pytest.raises(ChannelClosed):
        receiving.item
    other.close()
    with pytest.raises(ChannelClosed):
        select(sending)


def test_select_does_one_thing_alone() -> None:
    channels = [Channel(1) for _ in range(4)]
    for _ in range(20):
        found = select(*(channel.sending(index) for index, channel in enumerate(channels)))
        assert len(found) == 1
        assert sum(len(channel) for channel in channels) == 1
        assert found[0].channel.recv() == channels.index(found[0].channel)


def test_select_is_fair_between_channels() -> None:
    channels = [Channel(100) for _ in range(3)]
    for channel in channels:
        for item in range(100):
            channel.send(item)
    for _ in range(30):
        select(*(channel.receiving() for channel in channels))
    assert [len(channel) for channel in channels] == [90, 90, 90]


@pytest.mark.parametrize("selecting", ["sender", "receiver", "both"])
def test_select_at_a_rendezvous(selecting: str) -> None:
    one, other = Channel(), Channel()

    def send() -> None:
        for index in range(50):
            if selecting == "receiver":
                (one, other)[index % 2].send(index)
            else:
                select(one.sending(index), other.sending(index))

    process = started(send)
    got = []
    receiving = [one.receiving(), other.receiving()]
    for index in range(50):
        if selecting == "sender":
            got.append((one, other)[index % 3 % 2].recv(timeout=30))
        else:
            [case] = select(*receiving, timeout=30)
            got.append(case.item)
    assert got == list(range(50))
    joined(process)


# Deaths


def test_a_killed_senders_offer_stands_or_is_not_there() -> None:
    channel = Channel()
    process = started(channel.send, "last words")
    assert offered(channel)
    os.kill(process.pid, signal.SIGKILL)
    joined(process, -signal.SIGKILL)
    sender = Thread(lambda: channel.send("next"))
    assert channel.recv() == "last words"
    assert channel.recv() == "next"
    assert sender.get() is None


def test_a_killed_receiver_is_nothing_to_a_sender() -> None:
    channel = Channel()
    process = started(lambda: [channel.recv(), channel.recv()])
    channel.send(1)
    os.kill(process.pid, signal.SIGKILL)
    joined(process, -signal.SIGKILL)
    with pytest.raises(TimeoutError):
        channel.send(2, timeout=0.1)
    sender = Thread(lambda: channel.send(3))
    assert channel.recv() == 3
    assert sender.get() is None


@pytest.mark.timeout(60 + STOPS)
def test_a_receiver_that_is_stopped_amidst_keeps_no_sender_beyond_its_time(rng: random.Random) -> None:
    """And what was not sent is not received; what was, is, once."""
    item = bytes(20_000_000)  # taking it takes some 10 ms, in which the receiver holds its lock
    for number in range(STOPS):
        channel = Channel()
        back = manycore.Queue()
        process = started(lambda channel=channel, back=back: back.put([len(each) for each in channel]))
        assert process.pid is not None
        channel.send(b"")
        stop = threading.Timer(rng.uniform(0.005, 0.03), os.kill, (process.pid, signal.SIGSTOP))
        stop.start()
        began = time.monotonic()
        try:
            channel.send(item, timeout=0.1)
            sent = 1
        except TimeoutError:
            sent = 0
        assert time.monotonic() - began < 2, number
        stop.join()
        os.kill(process.pid, signal.SIGCONT)
        channel.send(b"x", timeout=30)
        channel.close()
        assert back.get(timeout=30) == [0, *[len(item)] * sent, 1]
        joined(process, 0)


# Broadcast


def _listen(source: Broadcast, ready: Any, results: Any) -> None:
    with source.subscribe() as receiver:
        ready.put(None)
        results.put(list(receiver))


def test_every_receiver_gets_every_item() -> None:
    source, ready, results = broadcast(5), manycore.Queue(), manycore.Queue()
    source.send("before anybody came")
    processes = [started(_listen, source, ready, results) for _ in range(3)]
    for _ in processes:
        ready.get(timeout=30)
    assert source.receivers == 3
    items = [*range(100), "x" * 100_000]
    for item in items:
        source.send(item)
    source.close()
    for _ in processes:
        assert results.get(timeout=30) == items
    for process in processes:
        joined(process)
    with pytest.raises(ChannelClosed):
        source.send(1)


def test_a_slow_receiver_blocks() -> None:
    source = broadcast(2)
    slow, quick = source.subscribe(), source.subscribe()
    source.send(1)
    source.send(2)
    assert [quick.recv(), quick.recv()] == [1, 2]
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="2 items behind"):
        source.send(3, timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    sender = Thread(lambda: source.send(3))
    assert slow.recv() == 1
    assert sender.get() is None
    assert len(slow) == 2
    slow.close()
    source.send(4)
    assert [quick.recv(), quick.recv()] == [3, 4]
    with pytest.raises(TimeoutError, match="was received"):
        quick.recv(timeout=0)
    with pytest.raises(ValueError, match="closed"):
        slow.recv()


@pytest.mark.parametrize("item", [7, [bytes(70_000), np.zeros(20_000)]])
def test_a_slow_receiver_loses_the_oldest(item: Any) -> None:
    source = broadcast(3, slow="drop-oldest")
    slow, quick = source.subscribe(), source.subscribe()
    for index in range(10):
        source.send((index, item))
        assert quick.recv()[0] == index
    assert slow.missed == 7
    assert quick.missed == 0
    assert [slow.recv()[0] for _ in range(3)] == [7, 8, 9]


def test_a_slow_receiver_is_disconnected() -> None:
    source = broadcast(3, slow="disconnect")
    slow, quick = source.subscribe(), source.subscribe()
    for index in range(10):
        source.send(index)
        assert quick.recv() == index
    with pytest.raises(ChannelClosed, match="3 items behind"):
        slow.recv()
    assert source.receivers == 1
    assert select(slow) == [slow]


def _hang(source: Broadcast, ready: Any) -> None:
    receiver = source.subscribe()
    receiver.recv()
    ready.put(None)
    signal.pause()


def test_a_dead_receiver_never_blocks_the_sender() -> None:
    source, ready = broadcast(3), manycore.Queue()
    process = started(_hang, source, ready)
    while source.receivers == 0:
        pass
    source.send(0)
    ready.get(timeout=30)
    for index in range(3):
        source.send(index)
    sender = Thread(lambda: source.send("one too many"))
    os.kill(process.pid, signal.SIGKILL)
    joined(process, -signal.SIGKILL)
    assert sender.get() is None
    assert source.receivers == 0
    for _ in range(100):
        source.subscribe()  # each is closed when it is forgotten


def test_select_on_a_receiver() -> None:
    source = broadcast(3)
    receiver = source.subscribe()
    assert select(receiver, timeout=0) == []
    waiting = Thread(lambda: select(receiver))
    source.send(1)
    assert waiting.get() == [receiver]
    assert receiver.recv() == 1
    source.close()
    assert select(receiver) == [receiver]


def test_what_belongs_to_a_process() -> None:
    source = broadcast(3)
    receiver = source.subscribe()
    with pytest.raises(TypeError, match="subscribe there"):
        pickle.dumps(receiver)

    def use() -> None:
        with pytest.raises(RuntimeError, match="subscribe in this one"):
            receiver.recv()

    joined(started(use))
    source.send(1)
    assert receiver.recv() == 1
    with pytest.raises(ValueError, match="drop-oldest"):
        broadcast(3, slow="wait")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="capacity"):
        broadcast(0)
    receivers = [source.subscribe() for _ in range(47)]
    with pytest.raises(OSError, match="as many receivers"):
        source.subscribe()
    assert source.receivers == 48
    del receivers
