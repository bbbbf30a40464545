"""The command that executes a zygote: this interpreter, its flags, and a bootstrap that finds this package."""

from __future__ import annotations

import os
import sys

__all__ = ["command", "import_path", "set_executable"]

_TITLE_ROOM = 512  # bytes of comment behind the bootstrap: the argv area, where titles are shown, is that much longer

# What nearly every module imports. If no module of this process's has, then none has whose functions children will run.
_USUAL = ("typing",)

_executable: str | None = None


def set_executable(path: str | bytes | os.PathLike[str] | None) -> None:
    """Use another interpreter than `sys.executable` for the zygotes to come; None means `sys.executable` again."""
    global _executable
    _executable = None if path is None else os.fsdecode(path)


def import_path() -> list[str]:
    """`sys.path` as a process elsewhere must have it: its relative entries made absolute here."""
    return [os.path.abspath(entry) for entry in sys.path]


def command(parent_pid: int, keeper_ends: int) -> tuple[str, list[str]]:
    """The executable and the arguments of a zygote, which is given some of the two ends of the keeper's sockets.

    The path is set before anything of ours is imported, so it works under -I and -S, and nothing in
    the working directory can stand in for a module.

    Returns:
        The path of the interpreter, and its argv.
    """
    executable = _executable or sys.executable
    if not executable:
        raise OSError("sys.executable is not set, so no interpreter can be started; call set_executable()")
    path = import_path()
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if home not in path:  # found by an import hook
        path = [*path, home]
    # No collections: they take a tenth of the time of its imports, and in children would copy the pages that all share.
    code = f"import gc,sys;gc.disable();sys.path[:]={path!r};"
    usual = [name for name in _USUAL if name in sys.modules]
    code += f"from manycore._launch.zygote import main;main({parent_pid},{keeper_ends},{usual!r})"
    return executable, [executable, *_flags(), "-c", f"{code}#{' ' * _TITLE_ROOM}"]


def _flags() -> list[str]:
    """This interpreter's flags, warning filters and -X options, as arguments."""
    flags = sys.flags
    letters = [
        ("d", flags.debug),
        ("B", flags.dont_write_bytecode),
        ("O", flags.optimize),
        ("v", flags.verbose),
        ("b", flags.bytes_warning),
        ("q", flags.quiet),
    ]
    if flags.isolated:
        letters.append(("I", 1))
    else:
        letters += [("s", flags.no_user_site), ("E", flags.ignore_environment), ("P", flags.safe_path)]
    letters.append(("S", flags.no_site))
    arguments = [f"-{letter * int(count)}" for letter, count in letters if count]
    if flags.dev_mode:
        arguments += ["-X", "dev"]
    arguments += [f"-W{option}" for option in sys.warnoptions if not _implied(option)]
    for name, value in sys._xoptions.items():
        if name != "dev":
            arguments += ["-X", name if value is True else f"{name}={value}"]
    return arguments


def _implied(option: str) -> bool:
    """Whether another flag adds this warning filter by itself (-b, -bb and -X dev do)."""
    if option.endswith("::BytesWarning"):
        return sys.flags.bytes_warning > 0
    return option == "default" and bool(sys.flags.dev_mode)
