# cython: language_level=3, boundscheck=False, wraparound=False
"""Room for a title where a process's command line is too short for one.

The kernel shows as a command line the bytes between two addresses, which `execve` set. A process may give
it others (PR_SET_MM_MAP of prctl(2), Linux 3.18; no privilege is needed, but CONFIG_CHECKPOINT_RESTORE is),
so that a process that was forked from a program with a command line of any length can be called by its own
name, and the program's arguments and environment stay where they are.

If a process dies: nothing of this outlives it.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint32_t, int32_t, uint64_t

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <linux/prctl.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <unistd.h>

    static void *mc_private_pages(size_t size) {
        void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return pages == MAP_FAILED ? NULL : pages;
    }

    /* 0, or -1 with errno. All but argv's bounds are as they are. */
    static int mc_move_argv(struct prctl_mm_map *map, const void *start, size_t size) {
        map->brk = (uint64_t)(uintptr_t)sbrk(0);
        map->arg_start = (uint64_t)(uintptr_t)start;
        map->arg_end = map->arg_start + size;
        map->auxv = NULL; /* as it is */
        map->auxv_size = 0;
        map->exe_fd = (uint32_t)-1;
        return prctl(PR_SET_MM, PR_SET_MM_MAP, map, sizeof *map, 0);
    }
    """
    ctypedef struct map_t "struct prctl_mm_map":
        uint64_t start_code
        uint64_t end_code
        uint64_t start_data
        uint64_t end_data
        uint64_t start_brk
        uint64_t start_stack
        uint64_t env_start
        uint64_t env_end
    void *mc_private_pages(size_t size) nogil
    int mc_move_argv(map_t *map, const void *start, size_t size) nogil

cdef extern from "sys/mman.h" nogil:
    int munmap(void *address, size_t size)


def make_room(size: int) -> None:
    """Have the kernel show `size` bytes of fresh memory as this process's command line. They are never given back.

    Only a process with one thread may do this: another could move the end of the heap meanwhile.

    Raises:
        OSError: The kernel does not do so, or there is more than one thread.
    """
    cdef map_t found
    cdef void *pages
    cdef size_t length = size
    cdef int error
    if len(os.listdir("/proc/self/task")) != 1:
        raise OSError("a process with several threads")
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # The fields of proc(5), counted from one; the state is field 3.
    found.start_code, found.end_code, found.start_stack = [int(fields[number - 3]) for number in (26, 27, 28)]
    found.start_data, found.end_data, found.start_brk = [int(fields[number - 3]) for number in (45, 46, 47)]
    found.env_start, found.env_end = [int(fields[number - 3]) for number in (50, 51)]
    pages = mc_private_pages(length)  # private, for the kernel reads no other as a command line
    if pages == NULL:
        raise OSError(ENOMEM, os.strerror(ENOMEM))
    if mc_move_argv(&found, pages, length) != 0:
        error = errno
        munmap(pages, length)
        raise OSError(error, os.strerror(error))
