# cython: language_level=3, boundscheck=False, wraparound=False
"""Frames over a descriptor, for connections: the bytes are `c/wire.h`, and `c/lane.h` where they are many and the other
end is ours; here are locks, signals and errors."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

import os
from _pickle import dumps as _dumps
from threading import Lock

cdef extern from "<errno.h>":
    const int EBADMSG, ECONNRESET, EINTR

cdef extern from "lane.h" nogil:
    ctypedef struct mc_spinner:
        int64_t budget_ns
    int64_t MC_NEVER
    const int MC_WIRE_END
    const int64_t MC_WIRE_SPIN_NS
    int64_t mc_now_ns()
    bint mc_wire_is_local(int fd)
    int mc_wire_send(int fd, const void *data, size_t size, size_t *progress, int passed)
    int mc_wire_receive(int fd, void *into, size_t size, size_t *progress, mc_spinner *spinner, int *passed)
    int mc_wire_poll(int fd, int64_t deadline_ns)

    const int MC_LANE_LEAST, MC_LANE_OFFERS, MC_LANE_MANIFEST
    const uint32_t MC_LANE_INLINE, MC_LANE_PLAIN, MC_LANE_OBJECT, MC_LANE_CHUNK, MC_LANE_PART
    ctypedef struct mc_lane_head:
        uint64_t id
        uint32_t accepted
    ctypedef struct mc_lane:
        mc_lane_head *shared
        int fd
    ctypedef struct mc_lane_message:
        const uint8_t *data
        size_t size
        uint32_t kind
        bint begun
        size_t progress
    int mc_lane_create(mc_lane *l)
    int mc_lane_fill(mc_lane *l)
    int mc_lane_accept(mc_lane *l, int fd)
    void mc_lane_close(mc_lane *l)
    uint8_t *mc_lane_chunk(mc_lane *l, uint32_t chunk)
    void mc_lane_give_back(mc_lane *l, uint32_t chunk)
    int mc_lane_send(int fd, mc_lane *l, mc_lane_message *m)

DEF MOST_LANES = 4  # that one end has mapped; more than one where several processes send through the other

cdef unsigned forks = 0


def _after_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_after_fork)


class CutShort(EOFError, ConnectionResetError):
    """The other end is gone with a message half sent, or with messages unread."""


cdef class Lane:
    """One process's mapping of a lane; it goes when nobody here uses it any more."""

    cdef mc_lane lane

    def __cinit__(self):
        self.lane.fd = -1

    def __dealloc__(self):
        mc_lane_close(&self.lane)


cdef class Wire:
    """One process's use of one end of a connection. A lock for each direction is held for a whole frame.

    Attributes:
        torn: A frame was begun, and interrupted where it cannot be gone on with: the descriptor is of no more use.
    """

    cdef mc_spinner spinner
    cdef mc_spinner record_spinner
    cdef object sending
    cdef object receiving
    cdef unsigned forks
    cdef readonly bint torn
    # of large messages that are sent; guarded by `sending`
    cdef Lane lane
    cdef int offers  # that may still be made; -1: nobody has looked whether descriptors travel here
    # of large messages that are received; guarded by `receiving`
    cdef list lanes  # the one that was used last is the last
    cdef int passed  # the descriptor that came last; -1: none
    # of the frame that is being received, which an interrupt may leave to the next call
    cdef uint8_t[12] head
    cdef size_t head_got
    cdef uint8_t[24] manifest
    cdef size_t manifest_got
    cdef Lane source  # the lane that it comes through; None: the socket
    cdef bint is_object
    cdef uint32_t chunk
    cdef size_t left  # of the part whose record is read
    cdef bint inlined
    cdef uint8_t[8] record
    cdef size_t record_got
    cdef bytes body
    cdef size_t body_got

    def __cinit__(self):
        self.passed = -1
        self.lanes = []
        self.renew()

    def __dealloc__(self):
        if self.passed >= 0:
            close(self.passed)

    cdef int renew(self) except -1:
        """A thread of the process that this one was forked from may have held the locks; and the lane is its own."""
        self.sending = Lock()
        self.receiving = Lock()
        self.forks = forks
        self.lane = None
        self.offers = -1
        return 0

    def release(self):
        """Give up the shared memory: the connection is closed here."""
        self.lane = self.source = None
        self.lanes = []

    cdef int received(self) except -1:
        """The frame is whole; what comes next is another."""
        self.head_got = 0
        self.source = None
        return 0

    # Sending

    cdef Lane lane_to(self, int fd, int *offered):
        """The lane, once the reader has accepted it; else None, and the descriptor that is to be offered, or -1."""
        cdef Lane lane = self.lane
        cdef int error = 0
        offered[0] = -1
        if lane is None:
            if self.offers < 0:
                self.offers = MC_LANE_OFFERS if mc_wire_is_local(fd) else 0
            if self.offers == 0:
                return None
            lane = Lane()
            error = mc_lane_create(&lane.lane)
        elif lane.lane.shared.accepted:
            with nogil:
                error = mc_lane_fill(&lane.lane)
            if not error:
                return lane
        elif self.offers == 0:
            error = EBADMSG
        if error:  # there is no memory for it, or nobody wants it: the socket is as good as ever
            self.lane = None
            self.offers = 0
            return None
        self.lane = lane
        self.offers -= 1
        offered[0] = lane.lane.fd
        return None

    def send(self, int fd, data, bint is_object=False):
        """Send a frame.

        Args:
            fd: Where.
            data: The bytes.
            is_object: They are a bytes object that the other side is to get as it is; sent as a pickle where the
                other side could not tell.

        Raises:
            BrokenPipeError: The other end is gone.
        """
        cdef Py_buffer view
        cdef size_t progress = 0
        cdef int error, offered = -1
        cdef Lane lane = None
        cdef mc_lane_message message
        if self.forks != forks:
            self.renew()
        with self.sending:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                if view.len >= MC_LANE_LEAST:
                    lane = self.lane_to(fd, &offered)
                if is_object and lane is None:
                    PyBuffer_Release(&view)
                    data = _dumps(data, 5)
                    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
                if lane is not None:
                    memset(&message, 0, sizeof(message))
                    message.data = <const uint8_t *>view.buf
                    message.size = view.len
                    message.kind = MC_LANE_OBJECT if is_object else MC_LANE_PLAIN
                while True:
                    if lane is None:
                        with nogil:
                            error = mc_wire_send(fd, view.buf, view.len, &progress, offered)
                    else:
                        with nogil:
                            error = mc_lane_send(fd, &lane.lane, &message)
                    if error == 0:
                        return
                    if error != EINTR:
                        raise OSError(error, os.strerror(error))
                    if progress or (lane is not None and (message.begun or message.progress)):
                        self.torn = True  # should the next line raise
                    PyErr_CheckSignals()
                    self.torn = False
            finally:
                PyBuffer_Release(&view)

    # Receiving

    cdef int receive(
        self, int fd, void *into, size_t size, size_t *progress, mc_spinner *spinner, bint passes
    ) except -1:
        cdef int error
        while True:
            with nogil:
                error = mc_wire_receive(fd, into, size, progress, spinner, &self.passed if passes else NULL)
            if error == 0:
                return 0
            if error == MC_WIRE_END:
                if self.passed >= 0:  # it came with a message that is cut short
                    close(self.passed)
                    self.passed = -1
                if self.head_got == 0:
                    self.lanes = []
                    raise EOFError
                raise CutShort("the other end is gone in the midst of a message")
            if error == ECONNRESET:
                raise CutShort("the other end is gone, and has not read all that was sent")
            if error != EINTR:
                raise OSError(error, os.strerror(error))
            PyErr_CheckSignals()

    cdef int64_t receive_size(self, int fd) except -2:
        """The size that the next frame's header says; less than 0 where that is no size."""
        cdef uint64_t size = 0
        cdef int i, first = 0
        cdef size_t length = 4
        if self.head_got < 4:
            if self.spinner.budget_ns > MC_WIRE_SPIN_NS:
                self.spinner.budget_ns = MC_WIRE_SPIN_NS
            self.receive(fd, self.head, 4, &self.head_got, &self.spinner, False)
            self.source = None
            self.is_object = False
        if self.head[0] == 0xff and self.head[1] == 0xff and self.head[2] == 0xff:
            if self.head[3] == <uint8_t>MC_LANE_PLAIN or self.head[3] == <uint8_t>MC_LANE_OBJECT:
                return self.receive_manifest(fd)
            if self.head[3] == 0xff:
                length, first = 12, 4
                self.receive(fd, self.head, 12, &self.head_got, NULL, False)
        for i in range(first, <int>length):
            size = size << 8 | self.head[i]
        if size > 0x7fffffffffffffff or (length == 4 and size > 0x7fffffff):
            return -1
        return <int64_t>size

    cdef int64_t receive_manifest(self, int fd) except -2:
        """Of a frame that comes through a lane: which, and how long it is."""
        cdef uint64_t id, size
        if self.source is None:
            self.receive(fd, self.manifest, MC_LANE_MANIFEST, &self.manifest_got, &self.record_spinner, True)
            memcpy(&id, self.manifest, 8)
            self.source = self.lane_from(id)
            memcpy(self.record, <uint8_t *>self.manifest + 16, 8)
            self.manifest_got = 0
            self.is_object = self.head[3] == <uint8_t>MC_LANE_OBJECT
            self.read_record()
        memcpy(&size, <uint8_t *>self.manifest + 8, 8)
        return -1 if size > 0x7fffffffffffffff else <int64_t>size

    cdef int read_record(self) except -1:
        cdef uint32_t length
        memcpy(&self.chunk, self.record, 4)
        memcpy(&length, <uint8_t *>self.record + 4, 4)
        self.record_got = 0
        self.inlined = (length & MC_LANE_INLINE) != 0
        self.left = length & ~MC_LANE_INLINE
        if self.left == 0 or self.left > (MC_LANE_PART if self.inlined else MC_LANE_CHUNK):
            self.damaged("a message has a damaged record")
        return 0

    cdef int damaged(self, str what) except -1:
        self.torn = True
        raise OSError(EBADMSG, what)

    cdef int meet(self) except -1:
        """Accept the lane whose descriptor has come, where one has."""
        cdef Lane lane = Lane()
        cdef int fd = self.passed, error
        if fd < 0:
            return 0
        self.passed = -1
        error = mc_lane_accept(&lane.lane, fd)
        close(fd)
        if not error and self.known(lane.lane.shared.id) is None:
            self.lanes.append(lane)
            del self.lanes[:-MOST_LANES]
        return 0

    cdef Lane known(self, uint64_t id):
        cdef Lane lane
        for lane in self.lanes:
            if lane.lane.shared.id == id:
                return lane
        return None

    cdef Lane lane_from(self, uint64_t id):
        cdef Lane lane = self.known(id)
        if lane is None:
            self.meet()
            lane = self.known(id)
            if lane is None:
                self.damaged("a message came through shared memory that this process could not get")
        elif self.passed >= 0:
            close(self.passed)
            self.passed = -1
        return lane

    cdef int fetch(self, int fd, uint8_t *into, size_t size, size_t *got) except -1:
        """The content of a frame whose header is read."""
        cdef size_t end
        cdef Lane lane = self.source
        cdef bint large = size >= <size_t>MC_LANE_LEAST
        if lane is None:
            self.receive(fd, into, size, got, NULL, large)
            if large:
                self.meet()
            return 0
        while got[0] < size:
            if self.left == 0:
                self.receive(fd, self.record, 8, &self.record_got, &self.record_spinner, False)
                self.read_record()
            end = got[0] + self.left
            if end > size:
                self.damaged("a message has a damaged record")
            if self.inlined:
                while got[0] < end:
                    try:
                        self.receive(fd, into, end, got, NULL, False)
                    finally:
                        self.left = end - got[0]
            else:
                with nogil:
                    memcpy(into + got[0], mc_lane_chunk(&lane.lane, self.chunk), self.left)
                    mc_lane_give_back(&lane.lane, self.chunk)
                got[0] = end
            self.left = 0
        return 0

    cdef bytes take(self, int fd, Py_ssize_t most, bint *is_object):
        cdef int64_t size
        if self.forks != forks:
            self.renew()
        with self.receiving:
            if self.body is None:
                size = self.receive_size(fd)
                if size < 0 or (most >= 0 and size > most):
                    return None
                self.body = PyBytes_FromStringAndSize(NULL, size)
                self.body_got = 0
            self.fetch(fd, <uint8_t *>PyBytes_AS_STRING(self.body), PyBytes_GET_SIZE(self.body), &self.body_got)
            body, self.body = self.body, None
            is_object[0] = self.is_object
            self.received()
            return body

    def recv(self, int fd, Py_ssize_t most=-1):
        """Receive a frame; None where it is longer than `most`, and then the descriptor is of no more use.

        Raises:
            EOFError: The other end is gone.
        """
        cdef bint is_object = False
        cdef bytes body = self.take(fd, most, &is_object)
        if is_object and body is not None:
            body = _dumps(body, 5)
            if most >= 0 and PyBytes_GET_SIZE(body) > most:
                return None
        return body

    def recv_object(self, int fd, owner):
        """Receive a frame and give what the owner's `_loads` makes of it, or `_bad_message_length` of a damaged one.

        Raises:
            EOFError: The other end is gone.
        """
        cdef bint is_object = False
        cdef bytes body = self.take(fd, -1, &is_object)
        if body is None:
            return owner._bad_message_length()
        return body if is_object else owner._loads(body)

    def recv_into(self, int fd, buffer, Py_ssize_t offset):
        """Receive a frame into a buffer from `offset` on; its size, or the frame where there is no room for it."""
        cdef Py_buffer view
        cdef int64_t size
        cdef size_t got = 0
        if self.forks != forks:
            self.renew()
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            with self.receiving:
                if self.body is None:
                    size = self.receive_size(fd)
                    if size < 0:
                        return None
                    if size <= view.len - offset and not self.is_object:
                        self.torn = True
                        self.fetch(fd, <uint8_t *>view.buf + offset, size, &got)
                        self.torn = False
                        self.received()
                        return size
            data = self.recv(fd)
            if data is None or len(data) > view.len - offset:
                return data
            memcpy(<uint8_t *>view.buf + offset, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return len(data)
        finally:
            PyBuffer_Release(&view)

    def poll(self, int fd, timeout):
        """Whether a frame, or the end, is there within `timeout` seconds; None is any time."""
        cdef int64_t deadline_ns = MC_NEVER if timeout is None else mc_now_ns() + <int64_t>(max(0.0, min(timeout, 9e9)) * 1e9)
        cdef int ready
        if self.body is not None or self.head_got:
            return True
        while True:
            with nogil:
                ready = mc_wire_poll(fd, deadline_ns)
            if ready >= 0:
                return ready == 1
            if ready != -EINTR:
                raise OSError(-ready, os.strerror(-ready))
            PyErr_CheckSignals()
