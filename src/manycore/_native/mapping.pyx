# cython: language_level=3, boundscheck=False, wraparound=False
"""Mapped shared memory, and the two things that `os` cannot do to its pages.

`Mapping` is what `mmap.mmap` is, without a second descriptor (CPython before 3.13 duplicates it, which
halves the number of segments a process can hold) and without an explicit close: the pages stay mapped
until the last buffer export is gone, so no thread can be left with a dangling pointer.

If a process dies: the kernel unmaps. A mapping holds no state of its own.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport uintptr_t
from posix.signal cimport sigset_t, sigfillset
from posix.types cimport off_t

import os

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    void *MAP_FAILED

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <signal.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* The raw call: glibc's posix_fallocate would write zeros where the call is missing. */
    static int mc_fallocate(int fd, int punch, off_t offset, off_t length) {
        int mode = punch ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0;
        return fallocate(fd, mode, offset, length);
    }
    """
    int mc_fallocate(int fd, int punch, off_t offset, off_t length) nogil
    int SIG_SETMASK
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) nogil

# bytes given to one call of the kernel: it takes some 20 ms, during which signals wait
cdef off_t _CHUNK = 32 << 20


cdef class Mapping:
    """Pages of a descriptor, mapped shared, as a buffer.

    Args:
        fd: The descriptor; it may be closed afterwards.
        size: Bytes; not zero.
        offset: Where in the file, a multiple of the page size.
        writable: False maps the pages read-only: a write through any pointer faults.

    Raises:
        OSError: The kernel refused.
    """

    cdef void *_address
    cdef readonly Py_ssize_t size
    cdef readonly bint writable

    def __cinit__(self, int fd, Py_ssize_t size, Py_ssize_t offset=0, bint writable=True):
        self._address = NULL
        cdef void *address
        with nogil:
            address = mmap(NULL, <size_t>size, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, offset)
        if address == MAP_FAILED:
            code = errno
            raise OSError(code, f"cannot map {size} bytes of shared memory: {os.strerror(code)}")
        self._address = address
        self.size = size
        self.writable = writable

    def __dealloc__(self):
        if self._address != NULL:
            munmap(self._address, <size_t>self.size)

    @property
    def address(self):
        return <uintptr_t>self._address

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._address, self.size, not self.writable, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass


cdef int _fallocate(int fd, bint punch, off_t offset, off_t length) except -1:
    """The call in chunks, signals held back: the kernel undoes a whole call that a signal interrupts, so that a
    1 ms interval timer would keep an allocation of 1 GiB from ever ending."""
    cdef sigset_t everything, before
    cdef int result, code
    cdef off_t part
    sigfillset(&everything)
    while length > 0:
        part = min(length, _CHUNK)
        with nogil:
            pthread_sigmask(SIG_SETMASK, &everything, &before)
            result = mc_fallocate(fd, punch, offset, part)
            code = errno
            pthread_sigmask(SIG_SETMASK, &before, NULL)
        if result == 0:
            offset += part
            length -= part
        elif code != EINTR:
            raise OSError(code, os.strerror(code))
        PyErr_CheckSignals()
    return 0


def allocate(int fd, off_t offset, off_t length):
    """Give pages to a range of a memfd, growing the file if need be.

    Raises:
        OSError: ENOSPC or ENOMEM where the memory is not there, EFBIG over RLIMIT_FSIZE. Pages given by
            earlier parts of the call stay given.
    """
    _fallocate(fd, False, offset, length)


def punch(int fd, off_t offset, off_t length):
    """Give the pages of a range back to the system; the range reads as zeros afterwards."""
    _fallocate(fd, True, offset, length)
