# cython: language_level=3
"""What the kernel knows of a process and Python's `os` cannot set: its title, who adopts its orphans, whom it follows."""

import _signal
import sys

from libc.signal cimport SIGINT
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    int PR_SET_NAME
    int PR_SET_PDEATHSIG
    int PR_SET_CHILD_SUBREAPER

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1
    object PyRun_String(const char *code, int start, object names, object locals)
    int Py_file_input

cdef extern from "unistd.h":
    int gettid()

cdef extern from "shield.h" nogil:
    bint mc_shield_raise()
    bint mc_shield_lower()

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

cdef extern from "child.h":
    int mc_arm(int lifeline, int owner, int signum)
    int mc_settle(int lifeline, int stack, int stack_fd, int *keep, int count)
    void mc_follow(int pid, const int *limits, int count)
    void mc_announce(int control, const char *record, size_t size, const char *without, size_t without_size)

cdef extern from "crash.h":
    void mc_crash_load()
    int mc_crash_install(int fd)

cdef enum:
    MOST = 280  # descriptors that a child keeps (MAX_FDS of wire.py, and its own), limits that it follows

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


def arm(int lifeline, int owner, int signum) -> bool:
    """Have the kernel send a signal when the last write end of a pipe closes; False if it has closed already.

    `lifeline` is an open file of the pipe's read end that belongs to this process alone; `owner` a pid, or minus the
    number of a process group.
    """
    cdef int armed = mc_arm(lifeline, owner, signum)
    if armed < 0:
        raise OSError(errno, "F_SETOWN, F_SETSIG or O_ASYNC")
    return armed == 0


cdef int _numbers(object given, int *numbers) except -1:
    cdef int count = 0
    for number in given:
        if count == MOST:
            raise ValueError(f"more than {MOST} numbers")
        numbers[count] = number
        count += 1
    return count


def settle(int lifeline, int stack, int stack_fd, keep) -> None:
    """Make the fork of a zygote a process of its own: its group, its tie to the parent, its descriptors.

    `stack` becomes `stack_fd`; of all descriptors above 2, only those in `keep` (280 at most) stay open.
    """
    cdef int numbers[MOST]
    cdef int count = _numbers(keep, numbers)
    if mc_settle(lifeline, stack, stack_fd, numbers, count) != 0:
        raise OSError(errno, "setpgid, prctl or dup3")


def follow(int pid, limits) -> None:
    """Take over the cores and the limits (RLIMIT_*) that a process has now, as far as that is allowed."""
    cdef int numbers[MOST]
    cdef int count = _numbers(limits, numbers)
    mc_follow(pid, numbers, count)


def announce(int control, record: bytes, without: bytes) -> None:
    """Send `record` with this process's pidfd through a socket, which is closed; `without`, if no descriptor can go.

    Exits where nobody is left to read it.
    """
    mc_announce(control, record, len(record), without, len(without))


def load_crash_teller() -> None:
    """Load what `tell_crashes` needs; a fork of a program with threads must have that from before."""
    mc_crash_load()


def tell_crashes(int fd) -> None:
    """At a fatal signal, have the thread's native stack written to `fd` before the handlers are called that are there now.

    Where the C library cannot walk a stack (musl), nothing is written.
    """
    if mc_crash_install(fd) != 0:
        raise OSError(errno, "sigaltstack or sigaction")


cdef class End:
    """The interpreter's end, in which no Ctrl-C is lost: what waits then is to wait no longer.

    At its end the interpreter joins the program's threads and calls exit handlers. A Ctrl-C that comes meanwhile is printed,
    swallowed, and the next of them goes on as if there had been none. So it is noted here, by the handler of SIGINT and by
    what ends a step. Steps begin and end in C: a handler that raised before the first line of a function in Python would be
    seen by nothing in it. One is lost all the same: it comes while the interpreter writes what was left in `sys.stdout`.

    Args:
        stop: Called at exit once the program ends by Ctrl-C: first, or when `wait` has returned. It hears no other.
        wait: Called at exit; each Ctrl-C ends it.
        finish: Called last. It hears none; nor do later handlers, if the program ends by one: it has said so.
    """

    cdef object stop, wait, finish  # the steps at exit
    cdef object join  # what joins threads
    cdef object before  # the handler of SIGINT that the program had
    cdef object error  # the first that ended a step at exit
    cdef bint noted  # that a Ctrl-C has come since the end began
    cdef bint told  # that the traceback of one is out

    def __init__(self, stop, wait, finish):
        self.stop = stop
        self.wait = wait
        self.finish = finish

    def watch(self, threading) -> None:
        """Take the place of what the interpreter calls first at its end."""
        if self.join is None:
            self.join = threading._shutdown
            threading._shutdown = self.join_threads

    def join_threads(self) -> None:
        """Note each Ctrl-C from now on, and join the program's threads."""
        try:
            handler = _signal.getsignal(SIGINT)
            if self.before is None and callable(handler) and getpid() == gettid():
                self.before = handler
                _signal.signal(SIGINT, self.heard)
            self.join()
        except KeyboardInterrupt:
            self.noted = True
            raise

    def heard(self, signum, frame) -> None:
        """The handler of SIGINT from then on."""
        try:
            self.before(signum, frame)
        except KeyboardInterrupt:
            self.noted = True
            raise

    def at_exit(self) -> None:
        """The exit handler."""
        cdef bint shielded = getpid() == gettid()  # the thread in which Python calls handlers of signals
        cdef bint stopped = False
        self.told = self.is_interrupted()
        if shielded:
            mc_shield_raise()
        self.do(_heed)
        if self.is_interrupted():
            self.do(self.stop)
            stopped = True
        if shielded:
            mc_shield_lower()
        self.do(self.wait)
        if shielded:
            mc_shield_raise()
        self.do(_heed)
        if self.is_interrupted() and not stopped:
            self.do(self.stop)
        self.do(self.finish)
        if self.noted:
            _end_by_sigint()
        if shielded and not self.is_interrupted():
            mc_shield_lower()
        error, self.error = self.error, None
        if error is not None:
            raise error

    cdef bint is_interrupted(self):
        """Whether the program ends by Ctrl-C: in its end, or by its last traceback, unless it is a session that went on."""
        kind = getattr(sys, "last_type", None)
        return self.noted or (isinstance(kind, type) and issubclass(kind, KeyboardInterrupt) and not hasattr(sys, "ps1"))

    cdef void do(self, step):
        try:
            step()
        except BaseException as error:
            interrupt = isinstance(error, KeyboardInterrupt)
            self.noted = self.noted or interrupt
            if self.error is None and not (interrupt and self.told):
                self.error = error


def _heed():
    """Have handlers called of signals that have come."""
    PyErr_CheckSignals()


cdef void _end_by_sigint():
    """Have the interpreter end by SIGINT when all is over: it does if what it ran last was ended by Ctrl-C."""
    names = {}
    try:
        PyRun_String(b"raise KeyboardInterrupt", Py_file_input, names, names)
    except KeyboardInterrupt:
        pass
