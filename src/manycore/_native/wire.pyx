# cython: language_level=3, boundscheck=False, wraparound=False
"""Frames over a descriptor, for connections: the bytes are `c/wire.h`; here are locks, signals and errors."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint64_t

import os
from threading import Lock

cdef extern from "<errno.h>":
    const int ECONNRESET, EINTR

cdef extern from "wire.h" nogil:
    ctypedef struct mc_spinner:
        pass
    int64_t MC_NEVER
    const int MC_WIRE_END
    int64_t mc_now_ns()
    int mc_wire_send(int fd, const void *data, size_t size, size_t *progress)
    int mc_wire_receive(int fd, void *into, size_t size, size_t *progress, mc_spinner *spinner)
    int mc_wire_poll(int fd, int64_t deadline_ns)

cdef unsigned forks = 0


def _after_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_after_fork)


class CutShort(EOFError, ConnectionResetError):
    """The other end is gone with a message half sent, or with messages unread."""


cdef class Wire:
    """One process's use of one end of a connection. A lock for each direction is held for a whole frame.

    Attributes:
        torn: A frame was begun, and interrupted where it cannot be gone on with: the descriptor is of no more use.
    """

    cdef mc_spinner spinner
    cdef object sending
    cdef object receiving
    cdef unsigned forks
    cdef readonly bint torn
    # of the frame that is being received, which an interrupt may leave to the next call
    cdef uint8_t[12] head
    cdef size_t head_got
    cdef bytes body
    cdef size_t body_got

    def __cinit__(self):
        self.renew()

    cdef int renew(self) except -1:
        """A thread of the process that this one was forked from may have held the locks."""
        self.sending = Lock()
        self.receiving = Lock()
        self.forks = forks
        return 0

    def send(self, int fd, data):
        """Send a frame.

        Raises:
            BrokenPipeError: The other end is gone.
        """
        cdef Py_buffer view
        cdef size_t progress = 0
        cdef int error
        if self.forks != forks:
            self.renew()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with self.sending:
                while True:
                    with nogil:
                        error = mc_wire_send(fd, view.buf, view.len, &progress)
                    if error == 0:
                        return
                    if error != EINTR:
                        raise OSError(error, os.strerror(error))
                    if progress:
                        self.torn = True  # should the next line raise
                    PyErr_CheckSignals()
                    self.torn = False
        finally:
            PyBuffer_Release(&view)

    cdef int receive(self, int fd, void *into, size_t size, size_t *progress, bint first) except -1:
        cdef int error
        while True:
            with nogil:
                error = mc_wire_receive(fd, into, size, progress, &self.spinner if first else NULL)
            if error == 0:
                return 0
            if error == MC_WIRE_END:
                if first and progress[0] == 0:
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
            self.receive(fd, self.head, 4, &self.head_got, True)
        if self.head[0] == 0xff and self.head[1] == 0xff and self.head[2] == 0xff and self.head[3] == 0xff:
            length, first = 12, 4
            self.receive(fd, self.head, 12, &self.head_got, False)
        for i in range(first, <int>length):
            size = size << 8 | self.head[i]
        if size > 0x7fffffffffffffff or (length == 4 and size > 0x7fffffff):
            return -1
        return <int64_t>size

    def recv(self, int fd, Py_ssize_t most=-1):
        """Receive a frame; None where it is longer than `most`, and then the descriptor is of no more use.

        Raises:
            EOFError: The other end is gone.
        """
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
            self.receive(fd, PyBytes_AS_STRING(self.body), PyBytes_GET_SIZE(self.body), &self.body_got, False)
            body, self.body = self.body, None
            self.head_got = 0
            return body

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
                    if size <= view.len - offset:
                        self.torn = True
                        self.receive(fd, <uint8_t *>view.buf + offset, size, &got, False)
                        self.torn = False
                        self.head_got = 0
                        return size
        finally:
            PyBuffer_Release(&view)
        return self.recv(fd)

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
