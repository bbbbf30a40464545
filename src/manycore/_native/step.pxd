# What other extensions use of steps and mutexes, without a Python call.

cdef int enter_step() except -1
cdef int leave_step() except -1
cdef int look_free() except -1


cdef class Mutex:
    cdef void *lock
    cdef unsigned long holder
    cdef Py_ssize_t again
    cdef bint reentrant

    cdef int take(self) except -1
    cdef int give(self) except -1
