"""setuptools' build backend, with one question asked first: can this machine compile C against Python?

A failed compile ends in pages of output whose last line names no cure. This backend looks for the
compiler and for the headers before anything is built, and says in one line what to install.
Source distributions need neither.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (  # noqa: F401  (the hooks that need no compiler)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def missing_tool() -> str | None:
    """One line that says what to install, or None when the machine can build."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        return (
            f"manycore needs a C compiler and found none ({command[0]!r}): install one, for example "
            "'apt install gcc libc6-dev', 'dnf install gcc' or 'apk add gcc musl-dev', and run pip again."
        )
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"manycore needs Python's headers and found no {header}: install them, for example "
            f"'apt install python{version}-dev' or 'dnf install python{version}-devel', and run pip again."
        )
    return None


def _require_tools() -> None:
    message = missing_tool()
    if message is not None:
        raise SystemExit(message)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    _require_tools()
    return list(_setuptools.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    _require_tools()
    return list(_setuptools.get_requires_for_build_editable(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    _require_tools()
    return str(_setuptools.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    _require_tools()
    return str(_setuptools.build_editable(wheel_directory, config_settings, metadata_directory))
