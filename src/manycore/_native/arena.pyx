# cython: language_level=3, boundscheck=False, wraparound=False
"""Blocks of shared memory that one process hands out and any process gives back (`c/arena.h`, `c/allocator.h`).

`BlockArena` is the allocator's side, `BlockView` everybody else's, and `Block` one block as a buffer: it goes
back when the last view of it dies. The interpreter lock is what makes one thread at a time use the allocator;
it is released while a large payload is copied, which touches that block alone.

If a process dies: see README.md; `reclaim_dead` recycles what it had taken.
"""

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EFBIG, EIO, ENOSPC, ESTALE, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>

    /* How many forks lie between this process and the one that loaded this module: a block that was taken before
     * the last of them belongs to an ancestor, and is not this process's to give back. */
    static volatile int mc_forks;
    static volatile long mc_held; /* blocks of this process that will be given back; under the interpreter lock */
    static void mc_forked(void) { mc_forks++; mc_held = 0; }
    static int mc_watch_forks(void) { return pthread_atfork(NULL, NULL, mc_forked); }
    """
    int mc_forks
    long mc_held
    int mc_watch_forks()

cdef extern from "allocator.h" nogil:
    ctypedef struct mc_block:
        uint64_t length
    ctypedef struct mc_view:
        int fd
    ctypedef struct mc_arena:
        mc_view view
        uint32_t regions
        uint64_t budget, reserve, resident, idle, grown, live
        uint32_t generation
    ctypedef struct mc_fresh:
        mc_block *block
        uint64_t ref, cold, cold_end
    int mc_view_open(mc_view *view, int fd)
    void mc_view_close(mc_view *view)
    uint8_t *mc_block_payload(mc_block *block)
    mc_block *mc_block_take(mc_view *view, uint64_t ref, uint64_t length, uint32_t owner)
    mc_block *mc_block_look(mc_view *view, uint64_t ref, uint64_t length)
    bint mc_block_give_back(mc_view *view, mc_block *block, uint64_t ref, uint32_t owner)
    int mc_arena_open(mc_arena *arena, int fd, uint64_t file_size, uint64_t budget, uint64_t reserve)
    void mc_arena_close(mc_arena *arena)
    int mc_arena_alloc(mc_arena *arena, uint64_t length, mc_fresh *fresh)
    int mc_arena_back(mc_arena *arena, const mc_fresh *fresh)
    int mc_arena_fill(mc_arena *arena, const mc_fresh *fresh, const uint8_t *source, uint64_t length)
    void mc_arena_abort(mc_arena *arena, mc_fresh *fresh)
    void mc_arena_publish(mc_block *block, uint64_t ref, bint lasting)
    void mc_arena_hold(mc_block *block, uint64_t ref, uint32_t owner)
    bint mc_arena_release(mc_arena *arena, uint64_t ref)
    bint mc_arena_resend(mc_arena *arena, uint64_t ref, uint32_t owner)
    uint64_t mc_arena_reclaim_dead(mc_arena *arena, uint32_t owner)
    void mc_arena_drain(mc_arena *arena)
    void mc_arena_trim(mc_arena *arena, uint64_t keep)
    const char *mc_arena_valid(mc_arena *arena)

if mc_watch_forks() != 0:
    raise MemoryError("pthread_atfork")

# A copy from here on takes 0.1 ms or more, and is worth the risk that another thread keeps the interpreter lock
# for its 5 ms; below, it is not.
cdef uint64_t _UNLOCK_BYTES = 1 << 20

# Bytes of growth after which the memory that is left is looked at again (`_room`, some 50 us): growing that far
# takes 10 ms itself.
cdef uint64_t _ROOM_EVERY_BYTES = 32 << 20


class ArenaFull(MemoryError):  # noqa: N818
    """The arena has no room: its budget is used up, or the system has no more memory. Nothing was stored."""


cdef object _full(int code, uint64_t length):
    if code == ENOSPC:
        why = "its budget is used up"
    elif code == EFBIG:
        why = "no block is that large"
    elif code == EIO:
        why = "its shared memory was overwritten by a process, and is not used any more"
    else:
        why = os.strerror(code)
    return ArenaFull(f"no room for {length} bytes in the arena: {why}")


cdef class _Pin:
    """What a dropped block leaves behind until every forked child that may look at it is gone.

    Those are the forks numbered above `taken` and up to `dropped`.
    """

    cdef object keeper
    cdef mc_view *view
    cdef mc_block *block
    cdef uint64_t ref
    cdef uint32_t owner
    cdef long taken, dropped


cdef long _fork_count = 0  # forks that met live blocks (`note_fork`)
cdef list _pins = []


def note_fork():
    """Number the fork that is about to be made: what is held now is pinned. Returns the number."""
    global _fork_count
    _fork_count += 1
    return _fork_count


def forget_pins():
    """In a forked child: what the parent pinned is the parent's to give back."""
    _pins.clear()


def unpin(living):
    """Give back the pinned blocks that no living fork can see.

    Args:
        living: The numbers of the forks whose children are not known to be gone.
    """
    cdef _Pin pin
    cdef long fork
    cdef list keep = [], go = []
    for pin in _pins:
        for fork in living:
            if pin.taken < fork <= pin.dropped:
                keep.append(pin)
                break
        else:
            go.append(pin)
    _pins[:] = keep
    for pin in go:
        mc_block_give_back(pin.view, pin.block, pin.ref, pin.owner)


def held_blocks():
    """How many blocks this process holds: taken or reserved, and not dropped."""
    return mc_held


def pinned_blocks():
    """How many dropped blocks wait for a forked child to end."""
    return len(_pins)


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """The bytes of one block, as a buffer. Made by `take`, `look` and `reserve`.

    It goes back to its arena when it and every view of it are gone.

    Attributes:
        readonly: True for what was looked at, not taken.
    """

    cdef object _keeper  # whose mapping this lies in
    cdef mc_view *_view
    cdef mc_block *_block
    cdef uint64_t _ref
    cdef Py_ssize_t _length
    cdef uint32_t _owner
    cdef int _forks
    cdef long _taken  # _fork_count when it was taken
    cdef bint _mine
    cdef readonly bint readonly

    def __init__(self):
        raise TypeError("a block comes from an arena")

    def __dealloc__(self):
        global mc_held
        cdef _Pin pin
        if not self._mine or self._forks != mc_forks:
            return
        mc_held -= 1
        if self._taken == _fork_count:
            mc_block_give_back(self._view, self._block, self._ref, self._owner)
            return
        pin = _Pin.__new__(_Pin)
        pin.keeper = self._keeper
        pin.view = self._view
        pin.block = self._block
        pin.ref = self._ref
        pin.owner = self._owner
        pin.taken = self._taken
        pin.dropped = _fork_count
        _pins.append(pin)

    def __len__(self):
        return self._length

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, mc_block_payload(self._block), self._length, self.readonly, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass

    @property
    def ref(self):
        """(offset, length), as `put` gave it."""
        return self._ref, self._length

    def send(self, length=None):
        """Hand a reserved block out; nothing may be written into it any more.

        Args:
            length: Bytes in use; all of them by default.

        Returns:
            The ref to take it by.
        """
        global mc_held
        cdef Py_ssize_t used = self._length if length is None else length
        if not self._mine or self._forks != mc_forks:
            raise ValueError("this block is not this process's to send")
        if used < 0 or used > self._length:
            raise ValueError(f"{used} bytes of a block of {self._length}")
        mc_held -= 1
        self._mine = False
        self._block.length = used
        mc_arena_publish(self._block, self._ref, False)
        return self._ref, used


cdef Block _block(object keeper, mc_view *view, mc_block *block, uint64_t ref, Py_ssize_t length, uint32_t owner, bint mine):
    global mc_held
    cdef Block made = Block.__new__(Block)
    made._keeper = keeper
    made._view = view
    made._block = block
    made._ref = ref
    made._length = length
    made._owner = owner
    made._forks = mc_forks
    made._taken = _fork_count
    made._mine = mine
    made.readonly = not mine
    mc_held += mine
    return made


cdef object _stale(int code, uint64_t ref):
    if code == ESTALE:
        return OSError(code, f"the block {ref:#x} was taken or released already")
    return OSError(code, f"cannot map the block {ref:#x}: {os.strerror(code)}")


cdef class BlockView:
    """Another process's arena, or one's own, to take blocks of.

    Args:
        fd: The arena's descriptor; it must stay open as long as the view.
        owner: What to write into a block that is taken: unique among those who take from this arena.

    Raises:
        OSError: EPROTO where the descriptor is no arena of this version.
    """

    cdef mc_view _view
    cdef readonly uint32_t owner

    def __cinit__(self, int fd, owner=None):
        self.owner = os.getpid() if owner is None else owner
        cdef int code = mc_view_open(&self._view, fd)
        if code != 0:
            raise OSError(code, f"descriptor {fd} is not an arena: {os.strerror(code)}")

    def __dealloc__(self):
        mc_view_close(&self._view)

    def take(self, ref):
        """Become the owner of a block that was put.

        Args:
            ref: (offset, length), as `put` returned it. It is good for one taking.

        Returns:
            The block, writable.

        Raises:
            OSError: ESTALE where it was taken or released before.

        If a process dies: what it had taken is recycled by the allocator's `reclaim_dead`.
        """
        cdef uint64_t number = ref[0]
        cdef Py_ssize_t length = ref[1]
        cdef mc_block *block = mc_block_take(&self._view, number, length, self.owner)
        if block == NULL:
            raise _stale(errno, number)
        return _block(self, &self._view, block, number, length, self.owner, True)

    def look(self, ref):
        """A lasting block, read-only and without owning it: valid until its allocator releases it."""
        cdef uint64_t number = ref[0]
        cdef Py_ssize_t length = ref[1]
        cdef mc_block *block = mc_block_look(&self._view, number, length)
        if block == NULL:
            raise _stale(errno, number)
        return _block(self, &self._view, block, number, length, 0, False)


cdef class BlockArena:
    """The allocator's side. See `manycore._memory.arena.Arena`, which makes the memfd for it.

    Args:
        fd: An empty memfd of `file_bytes` bytes; it must stay open as long as the arena.
        file_bytes: Its size: address space, not memory.
        budget_bytes: The most memory that it may hold.
        reserve_bytes: How much of it may be idle while the arena is in use.
        owner: As in `BlockView`.
    """

    cdef mc_arena *_arena
    cdef uint64_t _looked_at
    cdef int _forks
    cdef readonly uint32_t owner

    def __cinit__(self, int fd, uint64_t file_bytes, uint64_t budget_bytes, uint64_t reserve_bytes, owner=None):
        self.owner = os.getpid() if owner is None else owner
        self._forks = mc_forks
        self._arena = <mc_arena *>calloc(1, sizeof(mc_arena))
        if self._arena == NULL:
            raise MemoryError()
        cdef int code = mc_arena_open(self._arena, fd, file_bytes, budget_bytes, reserve_bytes)
        if code != 0:
            raise OSError(code, f"cannot make an arena: {os.strerror(code)}")

    def __dealloc__(self):
        if self._arena != NULL:
            mc_arena_close(self._arena)
            free(self._arena)

    @property
    def puts(self):
        """Changes whenever a block is handed out."""
        return self._arena.generation

    def _room(self, uint64_t size):
        """Raises OSError where the system has not `size` bytes more; overridden by who knows how to ask."""

    cdef int _allocate(self, uint64_t length, mc_fresh *fresh) except -1:
        if self._forks != mc_forks:
            raise ValueError("an arena hands out blocks in the process that made it, not in a forked child")
        cdef int code = mc_arena_alloc(self._arena, length, fresh)
        if code != 0:
            raise _full(code, length)
        if fresh.cold_end > fresh.cold and self._arena.grown - self._looked_at > _ROOM_EVERY_BYTES:
            try:
                self._room(fresh.cold_end - fresh.cold)
            except OSError as error:
                mc_arena_abort(self._arena, fresh)
                raise ArenaFull(f"no room for {length} bytes in the arena: {error.strerror}") from error
            self._looked_at = self._arena.grown
        return 0

    cdef tuple _put(self, object buffer, bint lasting):
        cdef Py_buffer view
        cdef mc_fresh fresh
        cdef int code
        PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS)
        try:
            self._allocate(view.len, &fresh)
            if <uint64_t>view.len < _UNLOCK_BYTES:
                code = mc_arena_fill(self._arena, &fresh, <const uint8_t *>view.buf, view.len)
            else:
                with nogil:
                    code = mc_arena_fill(self._arena, &fresh, <const uint8_t *>view.buf, view.len)
            if code != 0:
                mc_arena_abort(self._arena, &fresh)
                raise _full(code, view.len)
            mc_arena_publish(fresh.block, fresh.ref, lasting)
            return fresh.ref, view.len
        finally:
            PyBuffer_Release(&view)

    def put(self, buffers, *, bint lasting=False):
        """Copy buffers into blocks, one each: all of them, or none.

        Args:
            buffers: Contiguous buffers, in C's or Fortran's order.
            lasting: The blocks are for many to `look` at, until they are released; else for one to `take`.

        Returns:
            A ref (offset, length) a buffer, in their order.

        Raises:
            ArenaFull: No room; nothing was stored.
        """
        cdef list refs = []
        try:
            for buffer in buffers:
                refs.append(self._put(buffer, lasting))
        except BaseException:
            for ref in refs:
                mc_arena_release(self._arena, ref[0])
            raise
        return refs

    def reserve(self, Py_ssize_t length):
        """A writable block to fill in place; `send` it, or drop it.

        Raises:
            ArenaFull: No room.
        """
        cdef mc_fresh fresh
        cdef int code
        if length < 0:
            raise ValueError("a block has at least 0 bytes")
        self._allocate(length, &fresh)
        with nogil:
            code = mc_arena_back(self._arena, &fresh)
        if code != 0:
            mc_arena_abort(self._arena, &fresh)
            raise _full(code, length)
        mc_arena_hold(fresh.block, fresh.ref, self.owner)
        return _block(self, &self._arena.view, fresh.block, fresh.ref, length, self.owner, True)

    def take(self, ref):
        """As `BlockView.take`, of one's own arena."""
        cdef uint64_t number = ref[0]
        cdef Py_ssize_t length = ref[1]
        cdef mc_block *block = mc_block_take(&self._arena.view, number, length, self.owner)
        if block == NULL:
            raise _stale(errno, number)
        return _block(self, &self._arena.view, block, number, length, self.owner, True)

    def look(self, ref):
        """As `BlockView.look`, of one's own arena."""
        cdef uint64_t number = ref[0]
        cdef Py_ssize_t length = ref[1]
        cdef mc_block *block = mc_block_look(&self._arena.view, number, length)
        if block == NULL:
            raise _stale(errno, number)
        return _block(self, &self._arena.view, block, number, length, 0, False)

    def release(self, ref):
        """Take back a block that nobody has taken, or a lasting one. False where somebody has it, or had it."""
        return self._forks == mc_forks and mc_arena_release(self._arena, ref[0])

    def resend(self, ref, uint32_t owner):
        """Offer again what a dead owner had taken; the bytes are as it left them. False where it gave it back."""
        return self._forks == mc_forks and mc_arena_resend(self._arena, ref[0], owner)

    def reclaim_dead(self, uint32_t owner):
        """Recycle every block that an owner holds of whom it is certain that it is dead. Returns how many."""
        return mc_arena_reclaim_dead(self._arena, owner) if self._forks == mc_forks else 0

    def trim(self, uint64_t keep_bytes=0):
        """Recycle what came back, and give idle memory to the system until at most `keep_bytes` of it are left."""
        if self._forks == mc_forks:
            mc_arena_trim(self._arena, keep_bytes)

    def _figures(self):
        mc_arena_drain(self._arena)
        cdef mc_arena *arena = self._arena
        return arena.live, arena.resident, arena.idle, arena.budget, arena.reserve, arena.regions

    def _valid(self):
        """None, or what is wrong with the books (for tests)."""
        cdef const char *wrong = mc_arena_valid(self._arena)
        return None if wrong == NULL else wrong.decode()
