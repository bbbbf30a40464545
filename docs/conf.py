"""Sphinx: the guide and the reference; `python -m sphinx -W -b html docs site` builds them, warnings as errors."""

import importlib
import inspect
import re
from pathlib import Path

import manycore

project = "manycore"
author = "The manycore developers"
copyright = "The manycore developers"
release = version = manycore.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "manycore"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# A reference to a name of ours must resolve; the standard library's are not looked up, as that needs a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!manycore).*"), ("py:.*", r"manycore\.(.*\.)?(_.*|[A-Z])")]


# The reference: a page for each module that is the home of public names, written from the table of names, so that no
# name can be missing from it.

TITLES = {
    "_launch": ("Machine and processes", "What this machine offers, and how a process ended."),
    "errors": ("Errors", "Each is a subclass of what programs for the standard library catch, and survives pickling."),
    "futures": ("Executor", "The interface of `concurrent.futures`."),
    "pool": ("Pools", "The one-call forms, and the interface of `multiprocessing.pool`."),
    "synchronize": ("Synchronisation", "The interface of `multiprocessing.synchronize`."),
}


FURTHER = ["connection", "queues"]  # public modules that are the home of no name of the face


def directive(module: object, name: str) -> str:
    """The lines that document one public name."""
    value = getattr(module, name)
    if not str(getattr(value, "__module__", "manycore")).startswith("manycore"):
        return f"``manycore.{name}``\n   The standard library's own ``{value.__module__}.{name}``."
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
    else:
        kind = "function" if callable(value) else "data"
    once = "\n   :exclude-members: Process" if name.endswith("Context") else ""  # its class is on the page already
    if kind == "class" and value.__mro__[1].__module__.startswith("manycore._engine."):  # what has no page of its own
        once = f"\n   :inherited-members: {value.__mro__[2].__name__}"
    return f".. auto{kind}:: {module.__name__}.{name}{once}"


def write_reference(folder: Path) -> None:
    """Writes a page a module; leaves those alone that would not change."""
    folder.mkdir(exist_ok=True)
    for home in sorted({*manycore._HOMES.values(), *FURTHER}):
        names = sorted((name for name, where in manycore._HOMES.items() if where == home), key=str.lower)
        module = importlib.import_module(f"manycore.{home}")
        exported = getattr(module, "__all__", ()) if home[0] != "_" else ()
        more = [name for name in exported if name not in manycore._HOMES]
        summary = (module.__doc__ or "").partition("\n")[0]
        title, text = TITLES.get(home, (home.rpartition(".")[2].capitalize(), summary))
        lines = [directive(manycore, name) for name in names] + [directive(module, name) for name in sorted(more)]
        body = "\n\n".join(lines)
        page = f"# {title}\n\n{text}\n\n```{{eval-rst}}\n{body}\n```\n"
        target = folder / f"{home.strip('_')}.md"
        if not target.exists() or target.read_text() != page:
            target.write_text(page)


write_reference(Path(__file__).parent / "reference")


# The house's own sections: one paragraph each, `Process-safety: ...`, its further lines indented.

SECTION = re.compile(r"(Process-safety|If a process dies|If a process forks|Memory effects): ?(.*)")


def paragraphs(_app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Turns those sections into paragraphs with a strong beginning."""
    inside = False
    for index, line in enumerate(lines):
        match = SECTION.fullmatch(line)
        if match:
            lines[index] = f"**{match[1]}:** {match[2]}"
            if index and lines[index - 1].strip():
                lines[index] = f"\n{lines[index]}"
        elif inside and line.startswith(" "):
            lines[index] = line.strip()
        inside = bool(match) or (inside and bool(line.strip()))
    lines[:] = "\n".join(lines).split("\n")


def setup(app: object) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", paragraphs, priority=100)  # before napoleon
