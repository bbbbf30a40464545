"""What `manycore doctor` looks at: one function a finding, and each says what it means for the user.

A check looks by doing where it can (makes a memfd, opens a pidfd, calls futex), since a sandbox may refuse
what the kernel's version promises.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import select
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from manycore._launch.machine import cpu_count, memory_limit_bytes
from manycore._memory.available import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CHECKS", "Finding", "examine"]

Status = Literal["ok", "note", "fail"]

_OLDEST_KERNEL = (5, 10)
_OLDEST_PYTHON = (3, 11)
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAKE_PRIVATE = 1 | 128
_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_SHM = "/dev/shm"  # noqa: S108  (the folder itself is what is looked at)
_FILES_A_WORKER = 6  # a pidfd, a channel and what a launch holds for a moment; generous


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        name: What was looked at.
        status: "fail" where manycore cannot work, "note" where something deserves a look, else "ok".
        value: What was found.
        meaning: What that means for the user.
    """

    name: str
    status: Status
    value: str
    meaning: str


def _size(count: float) -> str:
    """Bytes for a reader: three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _python() -> Finding:
    version = platform.python_version()
    value = f"{platform.python_implementation()} {version}, {sys.maxsize.bit_length() + 1}-bit"
    good = sys.implementation.name == "cpython" and sys.version_info >= _OLDEST_PYTHON and sys.maxsize > 1 << 32
    if good:
        return Finding("Python", "ok", value, "Supported.")
    return Finding("Python", "fail", value, "manycore needs CPython 3.11 or later, 64-bit.")


def _kernel() -> Finding:
    value = f"{platform.system()} {platform.release()} {platform.machine()}"
    numbers = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if platform.system() != "Linux":
        return Finding("Kernel", "fail", value, "manycore runs on Linux only.")
    if platform.machine() not in _SYS_FUTEX:
        return Finding("Kernel", "note", value, "Tested on x86_64 and aarch64 only; here you are the first.")
    if numbers < _OLDEST_KERNEL:
        return Finding("Kernel", "note", value, "Older than 5.10, the oldest that is supported.")
    return Finding("Kernel", "ok", value, "Supported.")


def _native() -> Finding:
    try:
        import_module("manycore._native.ring")
    except ImportError as error:
        return Finding("Native core", "fail", str(error), "The compiled part is missing: install manycore again.")
    return Finding("Native core", "ok", "loaded", "The compiled part fits this interpreter.")


def _cores() -> Finding:
    usable, affinity, present = cpu_count(), len(os.sched_getaffinity(0)), os.cpu_count() or 1
    value = f"{usable} of {present}"
    reasons = []
    if affinity < present:
        reasons.append(f"affinity allows {affinity}")
    if usable < affinity:
        reasons.append(f"the control group's quota allows {usable}")
    reason = f" ({', '.join(reasons)})" if reasons else ""
    if usable == 1:
        return Finding("Cores", "note", value, f"One core{reason}: processes can isolate work, not speed it up.")
    return Finding("Cores", "ok", value, f"A pool starts {usable} workers by default{reason}.")


def _interpreter_lock() -> Finding:
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    if enabled:
        return Finding("Interpreter lock", "ok", "on", "Threads share one core for Python code; processes do not.")
    return Finding("Interpreter lock", "ok", "off", "Threads use all cores too; processes also isolate crashes.")


def _group_folders(controller: str) -> Iterator[Path]:
    """The control group folders of this process for a controller, its own first, then its ancestors."""
    for line in Path("/proc/self/cgroup").read_text("ascii", "replace").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = Path("/sys/fs/cgroup")
            root = root / "unified" if (root / "unified").is_dir() else root
        elif controller in controllers.split(","):
            root = Path("/sys/fs/cgroup", controller)
        else:
            continue
        folder = root / path.strip("/")
        yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(root))


def _process_limits() -> Iterator[int]:
    """How many processes the control groups of this process allow."""
    for folder in _group_folders("pids"):
        try:
            yield int((folder / "pids.max").read_text("ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue


def _memory() -> Finding:
    total = psutil.virtual_memory().total
    limit = memory_limit_bytes()
    left = available_bytes()
    bound = f", limited to {_size(limit)}" if limit is not None and limit < total else ""
    value = f"{_size(left)} free of {_size(total)}{bound}"
    each = left // max(1, cpu_count())
    if each < 64 << 20:
        return Finding("Memory", "note", value, f"Only {_size(each)} a worker: expect the kernel to kill some.")
    return Finding("Memory", "ok", value, f"Each worker and its data may take about {_size(each)}.")


def _memfd() -> Finding:
    try:
        fd = os.memfd_create("manycore-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return Finding("memfd", "fail", str(error.strerror), "Shared memory cannot be made: manycore cannot work.")
    try:
        os.posix_fallocate(fd, 0, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        return Finding("memfd", "fail", str(error.strerror), "Shared memory cannot be sealed: manycore cannot work.")
    finally:
        os.close(fd)
    return Finding("memfd", "ok", "works, can be sealed", "Shared memory without names: nothing to leak.")


def _pidfd() -> Finding:
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError as error:
        return Finding("pidfd", "fail", str(error.strerror), "A worker's death cannot be seen: manycore cannot work.")
    try:
        poll = select.epoll()
        poll.register(fd, select.EPOLLIN)
        poll.close()
    finally:
        os.close(fd)
    return Finding("pidfd", "ok", "works", "A worker's death is seen at once, and never mistaken for another's.")


def _futex() -> Finding:
    number = _SYS_FUTEX.get(platform.machine())
    if number is None:
        return Finding("futex", "note", "not tried", "The number of the call is unknown on this architecture.")
    word = ctypes.c_uint32(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, ctypes.byref(word), _FUTEX_WAKE_PRIVATE, 1, None, None, 0) < 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "refused")
        return Finding("futex", "fail", reason, "Processes cannot wait in shared memory: manycore cannot work.")
    return Finding("futex", "ok", "works", "Processes wait in shared memory, and are woken from there.")


def _control_group() -> Finding:
    hybrid = Path("/sys/fs/cgroup/unified").is_dir()
    version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1 and v2" if hybrid else "v1"
    if not Path("/sys/fs/cgroup").is_dir():
        return Finding("Control group", "ok", "none", "Workers are killed by process group.")
    try:
        folder = next((f for f in _group_folders("") if (f / "cgroup.kill").exists()), None)
    except OSError:
        folder = None
    if folder is not None and os.access(folder / "cgroup.kill", os.W_OK) and os.access(folder, os.W_OK):
        return Finding("Control group", "ok", f"{version}, writable", "Even a task's escaped children can be killed.")
    return Finding(
        "Control group", "ok", f"{version}, not ours", "Limits are respected; workers are killed by process group."
    )


def _shm() -> Finding:
    try:
        stat = os.statvfs(_SHM)
    except OSError as error:
        return Finding(_SHM, "note", str(error.strerror), "Named SharedMemory will fail; pools do not need it.")
    size, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    value = f"{_size(free)} free of {_size(size)}"
    if free < 128 << 20:
        return Finding(_SHM, "note", value, "Small: it bounds named SharedMemory. Pools do not use it.")
    return Finding(_SHM, "ok", value, "Bounds named SharedMemory only; pools do not use it.")


def _start_methods() -> Finding:
    methods: list[str] = import_module("manycore.context").get_all_start_methods()
    meaning = "zygote is the default: a worker in a few ms, no __main__ guard."
    return Finding("Start methods", "ok", ", ".join(methods), meaning)


def _blas_threads() -> Finding:
    present = [f"{name}={os.environ[name]}" for name in _BLAS_VARIABLES if name in os.environ]
    cores = cpu_count()
    if present:
        return Finding("BLAS threads", "ok", ", ".join(present), "Workers inherit this.")
    if find_spec("numpy") is None:
        return Finding("BLAS threads", "ok", "no NumPy", "Nothing starts threads of its own in the workers.")
    meaning = f"NumPy and the like start up to {cores} threads in each worker; with full workers set OMP_NUM_THREADS=1."
    return Finding("BLAS threads", "note" if cores > 1 else "ok", "not limited", meaning)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < 64 + cpu_count() * _FILES_A_WORKER:
        top = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        return Finding("Open files", "note", most, f"Few for {cpu_count()} workers; raise it with: ulimit -n {top}")
    return Finding("Open files", "ok", most, "Enough for a pool on every core.")


def _processes() -> Finding:
    limits = list(_process_limits())
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    least = min(limits, default=None)
    if least is not None and least < 4 * cpu_count() + 8:
        return Finding("Processes", "note", f"{least:,}", f"Few for {cpu_count()} workers and what runs beside them.")
    return Finding("Processes", "ok", "no limit" if least is None else f"{least:,}", "Enough for a pool on every core.")


def _worker() -> Finding:
    # The one check that a user can believe without reading the others: do it.
    started = time.perf_counter()
    try:
        pool_class = import_module("manycore").Pool
        with pool_class(1) as pool:
            worker_pid = pool.apply_async(os.getpid).get(timeout=20)
    except Exception as error:
        return Finding(
            "A worker", "fail", f"{type(error).__name__}: {error}", "No worker answers: manycore cannot work."
        )
    elapsed = time.perf_counter() - started
    if worker_pid == os.getpid():
        return Finding("A worker", "fail", "ran in this process", "Workers are not processes of their own here.")
    return Finding("A worker", "ok", f"answered in {elapsed * 1e3:.0f} ms", "From nothing to the first result.")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _kernel,
    _native,
    _cores,
    _interpreter_lock,
    _memory,
    _memfd,
    _pidfd,
    _futex,
    _control_group,
    _shm,
    _start_methods,
    _blas_threads,
    _open_files,
    _processes,
    _worker,
)


def examine() -> list[Finding]:
    """Run every check; one that fails itself becomes a note, so that the others are still told."""
    findings = []
    for check in CHECKS:
        try:
            findings.append(check())
        except Exception as error:
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "note", f"{type(error).__name__}: {error}", "Could not be found out."))
    return findings
