"""Whether the kernel's out-of-memory killer was at work since the last look."""

from __future__ import annotations

__all__ = ["OomWatch"]


class OomWatch:
    """A counter of kills: this process's own memory cgroup where it has one, else the whole machine."""

    def __init__(self) -> None:
        self._seen = self._count()

    def has_killed(self) -> bool | None:
        """Whether it killed since this was last asked; None where the kernel does not count."""
        before, self._seen = self._seen, self._count()
        if before is None or self._seen is None:
            return None
        return self._seen > before

    @staticmethod
    def _count() -> int | None:
        from manycore._launch import machine

        for directory in machine.memory_cgroups():
            for name in ("memory.events", "memory.oom_control"):
                count = _field(f"{directory}/{name}", "oom_kill")
                if count is not None:
                    return count
        return _field("/proc/vmstat", "oom_kill")


def _field(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
