# cython: language_level=3
"""What other extensions need of a queue of records."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "queue.h" nogil:
    ctypedef uint32_t mc_word
    ctypedef struct mc_lock:
        pass
    ctypedef struct mc_spinner:
        pass
    ctypedef struct mc_waiting:
        bint slept
        uint64_t dead
    ctypedef enum mc_outcome:
        MC_TAKEN
        MC_TAKEN_OVER
        MC_TIMED_OUT
        MC_AGAIN
    int64_t MC_NEVER
    int64_t mc_now_ns()
    uint64_t mc_self()
    void mc_waiting_begin(mc_waiting *w, int64_t deadline_ns)
    bint mc_lock_try(mc_lock *l, uint64_t self)
    bint mc_lock_short_spin(mc_lock *l, uint64_t self)
    bint mc_lock_release(mc_lock *l)
    mc_outcome mc_lock_wait(mc_lock *l, uint64_t self, mc_waiting *w, mc_spinner *spinner)
    void mc_lock_left(mc_lock *l, mc_waiting *w)

    ctypedef struct mc_bells:
        pass
    int mc_bells_enter(mc_bells *b, uint64_t self, int fd, uint64_t inode)
    void mc_bells_leave(mc_bells *b, uint64_t self, int slot)

    ctypedef struct mc_queue_end:
        mc_word version
    ctypedef struct mc_queue_waits:
        mc_bells bells
    ctypedef struct mc_queue_work:
        bint kept
        mc_queue_waits waits
        mc_word changed
    ctypedef struct mc_queue:
        bint meets
        uint64_t most
        mc_word closed
        mc_lock writers
        mc_lock readers
        mc_queue_end tail
        mc_queue_end head
        mc_queue_waits items
        mc_queue_waits room
        uint32_t allocated
        uint32_t free_count
        mc_queue_work work
    ctypedef struct mc_queue_handle:
        mc_queue *shared
        int fd
        mc_spinner spinner
    ctypedef struct mc_queue_cursor:
        uint32_t block
        uint32_t offset
    ctypedef struct mc_queue_place:
        uint32_t block
        uint32_t offset
        uint64_t count
    uint32_t MC_QUEUE_BLOCK
    int mc_queue_open(mc_queue_handle *q, int fd, int64_t most)
    void mc_queue_close(mc_queue_handle *q)
    mc_queue_place mc_queue_look(mc_queue_end *end)
    void mc_queue_publish(mc_queue_end *end, mc_queue_cursor cursor, uint64_t count)
    void mc_queue_touch(mc_queue_end *end)
    bint mc_queue_is_awaited(mc_queue_waits *waits)
    uint64_t mc_queue_size(mc_queue *s)
    bint mc_queue_has_items(mc_queue *s)
    bint mc_queue_has_room(mc_queue *s)
    void mc_queue_wake(mc_queue_waits *waits, int count)
    void mc_queue_wake_all(mc_queue_waits *waits)
    mc_queue_cursor mc_queue_cursor_at(mc_queue_handle *q, mc_queue_place place)
    int mc_queue_begin_record(mc_queue_handle *q, mc_queue_cursor *c, uint64_t kind, uint64_t size)
    int mc_queue_write(mc_queue_handle *q, mc_queue_cursor *c, const void *data, size_t size)
    int mc_queue_next_record(mc_queue_handle *q, mc_queue_cursor *c, uint64_t *kind, uint64_t *size)
    int mc_queue_read(mc_queue_handle *q, mc_queue_cursor *c, void *into, size_t size)
    void mc_queue_give_back(mc_queue_handle *q, uint32_t first, uint32_t last)
    void mc_queue_announce(mc_queue *s)
    void mc_queue_arm(mc_queue_waits *waits, int slot)
    void mc_queue_hold(mc_queue *s, uint64_t self, uint64_t many)
    bint mc_queue_done(mc_queue *s, uint64_t self)
    bint mc_queue_all_done(mc_queue *s)
    void mc_queue_count_back(mc_queue *s)
    void mc_queue_forget_work(mc_queue *s)
    uint64_t mc_queue_lost(mc_queue *s)
    void mc_queue_left(mc_queue_waits *waits, mc_waiting *w)
    mc_outcome mc_queue_sleep(mc_word *version, mc_queue_waits *waits, uint32_t seen, mc_waiting *w, mc_spinner *spinner)

cdef extern from "meet.h" nogil:
    const uint64_t MC_OFFER_TAKEN, MC_OFFER_WITHDRAWN
    void mc_offer_make(mc_queue *s, uint64_t number)
    bint mc_offer_decide(mc_queue *s, uint64_t number, uint64_t what)
    bint mc_offer_sweep(mc_queue_handle *q, uint64_t self)

cdef enum:
    PACKED = 0
    BYTES = 1
    CODED = 2

cdef extern from *:
    """
    #define mc_queue_load32(word) atomic_load_explicit(word, memory_order_acquire)
    #define mc_queue_store32(word, value) atomic_store(word, value)
    """
    uint32_t mc_queue_load32(mc_word *word) nogil
    void mc_queue_store32(mc_word *word, uint32_t value) nogil


cdef int64_t deadline_of(bint block, object timeout) except -1
cdef object system_error(int error, str what)


cdef class RecordQueue:
    cdef mc_queue_handle handle
    cdef object __weakref__
    cdef readonly bint closed  # by this object's owner; says nothing about other processes
    cdef object shut_down_error
    cdef uint64_t checked_blocks  # the file may grow to this many before somebody looks whether there is memory
    cdef uint64_t lingered  # items that had been taken when waiting for memory was last in vain
    cdef uint64_t told  # tasks that were lost, as far as `join` has said so here

    cdef mc_queue *memory(self) except NULL
    cdef int linger(self, tuple record) except -1
    cdef tuple encode(self, object value)
    cdef object decode(self, tuple record)
    cdef bint lock(self, mc_lock *lock, int64_t deadline_ns) except -1
    cdef bint sleep(self, mc_word *version, mc_queue_waits *waits, uint32_t seen, mc_waiting *waiting) except -1
    cdef int require(self) except -1
    cdef int copy_in(self, mc_queue_cursor *cursor, object piece) except -1
    cdef int write(self, mc_queue_cursor *cursor, tuple record) except -1
    cdef Py_ssize_t put_records(self, list records, Py_ssize_t first, int64_t deadline_ns) except -1
    cdef object copy_out(self, mc_queue_cursor *cursor, uint64_t size, bint writable)
    cdef tuple read(self, mc_queue_cursor *cursor)
    cdef list get_records(self, Py_ssize_t most, int64_t deadline_ns)
