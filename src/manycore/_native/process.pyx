# cython: language_level=3
"""What the kernel knows of a process and Python's `os` cannot set: its title, and who adopts its orphans."""

from libc.string cimport memcpy, memset

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    int PR_SET_NAME
    int PR_SET_PDEATHSIG
    int PR_SET_CHILD_SUBREAPER

cdef extern from "errno.h":
    int errno

cdef extern from *:
    """
    #include <signal.h>
    #include <string.h>
    #include <time.h>

    static timer_t mc_end;             /* sends SIGKILL when it expires; a fork has none */
    static struct itimerspec mc_after; /* written before the handler is installed */

    /* timer_settime is among the functions that a handler may call (signal-safety(7)). */
    static void mc_start_to_end(int signum) {
        (void)signum;
        timer_settime(mc_end, 0, &mc_after, NULL);
    }

    static int mc_end_after(int signum, double seconds) {
        struct sigevent event;
        struct sigaction action;
        memset(&event, 0, sizeof event);
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = SIGKILL;
        if (timer_create(CLOCK_MONOTONIC, &event, &mc_end) != 0)
            return -1;
        memset(&mc_after, 0, sizeof mc_after);
        mc_after.it_value.tv_sec = (time_t)seconds;
        mc_after.it_value.tv_nsec = (long)((seconds - (double)mc_after.it_value.tv_sec) * 1e9);
        memset(&action, 0, sizeof action);
        action.sa_handler = mc_start_to_end;
        action.sa_flags = SA_RESTART | SA_ONSTACK;
        return sigaction(signum, &action, NULL);
    }
    """
    int mc_end_after(int signum, double seconds)

# The bytes of this process's own argv, which the kernel shows as /proc/PID/cmdline. A forked child
# has its own copy at the same address, so the bounds are looked up once.
cdef unsigned long _start = 0
cdef unsigned long _end = 0
cdef unsigned long _title_end = 0  # where the title that was set ends, within the area


cdef int _call(int option, unsigned long value) except -1:
    if prctl(option, value, 0, 0, 0) != 0:
        raise OSError(errno, f"prctl({option}, {value})")
    return 0


def find_title_area() -> int:
    """Look up where argv lies, and return its size in bytes (0 where the kernel does not say)."""
    global _start, _end, _title_end
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # argv's bounds are fields 48 and 49 of proc(5), counted from one; the state is field 3
    _start, _end = int(fields[48 - 3]), int(fields[49 - 3])
    if _end < _start:
        _start = _end = 0
    _title_end = 0
    return _end - _start


def set_title(title: bytes) -> None:
    """Show `title` as this process's command line, and its last part as its name.

    Only a process whose argv nobody reads any more may do this, so the zygote and its children: the
    interpreter has copied its arguments, and the area is as long as the zygote's own command line.
    """
    global _title_end
    cdef bytes text = title
    cdef size_t size = _end - _start
    if size > 1:
        text = text[:size - 1]
        memset(<void *>_start, 0, size)
        memcpy(<void *>_start, <const char *>text, len(text))
        _title_end = _start + len(text)
    _call(PR_SET_NAME, <unsigned long><const char *>title)


def title_room() -> tuple:
    """The memory behind this process's title that is shown with it: (address, bytes); (0, 0) where there is none.

    Its last byte must stay 0, so that the kernel shows nothing beyond the area.
    """
    if _title_end == 0 or _end < _title_end + 1:
        return 0, 0
    return _title_end, _end - _title_end - 1


def set_child_subreaper() -> None:
    """Adopt the orphans among this process's descendants, so that none escapes by losing its parent."""
    _call(PR_SET_CHILD_SUBREAPER, 1)


def set_parent_death_signal(int signum) -> None:
    """Have the kernel send `signum` to this process when the thread that started it ends."""
    _call(PR_SET_PDEATHSIG, signum)


def end_after(int signum, double seconds) -> None:
    """When `signum` comes, have the kernel kill this process `seconds` later, whatever the interpreter does then."""
    if mc_end_after(signum, seconds) != 0:
        raise OSError(errno, "timer_create or sigaction")
