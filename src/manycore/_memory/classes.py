"""A class taken apart into what pickles, and put together again.

A class goes in two pieces, so that whatever refers to it in a cycle can be read in between: a
skeleton (metaclass, name, bases, slots) that makes an empty class, and a state that fills it.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement or a call, not static in C

# What the interpreter, the metaclass or pickle makes anew for each class.
_MADE_ANEW = frozenset(
    ("__weakref__", "__dict__", "__module__", "__slots__", "__orig_bases__", "_abc_impl", "__slotnames__")
)
_ENUM_MADE_ANEW = _MADE_ANEW | frozenset((
    "_member_names_", "_member_map_", "_value2member_map_", "_unhashable_values_", "_hashable_values_",
    "_unhashable_values_map_", "_member_type_", "_value_repr_", "_use_args_", "__new__", "__new_member__",
    "_new_member_", "_generate_next_value_", "_flag_mask_", "_singles_mask_", "_all_bits_", "_boundary_", "_inverted_",
    "__qualname__",
))  # fmt: skip
_ENUM_MEMBER_OWN = frozenset(("_value_", "_name_", "__objclass__", "_sort_order_"))


def class_parts(cls: type) -> tuple[Any, Any]:
    """What makes an empty class like `cls`, and what fills it."""
    own = vars(cls)
    if isinstance(cls, enum.EnumMeta):
        members = {name: member._value_ for name, member in cls._member_map_.items()}
        made_anew = _ENUM_MADE_ANEW
        details = {
            name: {key: value for key, value in vars(member).items() if key not in _ENUM_MEMBER_OWN}
            for name, member in cls._member_map_.items()
        }
        skeleton: Any = ("enum", type(cls), cls.__name__, cls.__bases__, cls.__module__, cls.__qualname__, members)
        attributes = {key: value for key, value in own.items() if key not in made_anew and key not in members}
        return skeleton, (attributes, [], {name: extra for name, extra in details.items() if extra})
    basic = {key: own[key] for key in ("__slots__", "__orig_bases__") if key in own}
    basic["__module__"], basic["__qualname__"] = cls.__module__, cls.__qualname__
    skip = set(_MADE_ANEW)
    slots = own.get("__slots__", ())
    skip.update((slots,) if isinstance(slots, str) else slots)
    attributes = {
        key: value
        for key, value in own.items()
        if key not in skip and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType))
        and type(value).__name__ != "CField"
    }  # fmt: skip
    registry = []
    if "_abc_impl" in own:
        from _abc import _get_dump  # type: ignore[import-not-found]

        registry = [each for reference in _get_dump(cls)[0] if (each := reference()) is not None]
    return ("class", type(cls), cls.__name__, cls.__bases__, basic), (attributes, registry, None)


def make_class(metaclass: Any, name: str, bases: tuple[type, ...], basic: dict[str, Any]) -> type:
    """Makes the empty class that a skeleton describes."""
    try:
        return types.new_class(name, bases, {"metaclass": metaclass}, lambda namespace: namespace.update(basic))
    except TypeError:
        pass  # the metaclass or a base wants arguments, or a body: make the class past them
    try:
        made: type = type.__new__(metaclass, name, bases, dict(basic))
    except TypeError:
        made = type.__new__(metaclass, name, (_Quiet, *bases), dict(basic))
        made.__bases__ = bases
    return made


class _Quiet:
    """A first base that keeps `__init_subclass__` of the others from running; taken out again at once."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        pass


def make_enum(
    metaclass: Any, name: str, bases: tuple[type, ...], module: str, qualname: str, members: dict[str, Any]
) -> type:
    """Makes the enumeration that a skeleton describes, members and all."""
    namespace = metaclass.__prepare__(name, bases)
    namespace["__module__"], namespace["__qualname__"] = module, qualname
    for member, value in members.items():
        namespace[member] = value
    made: type = metaclass.__new__(metaclass, name, bases, namespace)
    return made


def fill_class(cls: type, state: tuple[dict[str, Any], list[type], dict[str, dict[str, Any]] | None]) -> None:
    """Fills an empty class, or brings one up to date."""
    attributes, registry, members = state
    for name, value in attributes.items():
        try:
            setattr(cls, name, value)
        except (AttributeError, TypeError):
            if not (name.startswith("__") and name.endswith("__")):
                raise
    for each in registry:
        cls.register(each)  # type: ignore[attr-defined]
    for name, extra in (members or {}).items():
        vars(cls._member_map_[name]).update(extra)  # type: ignore[attr-defined]


def own_functions(value: Any) -> Iterator[int]:
    """The ids of the functions that are part of a definition and must not be named through it."""
    yield id(value)
    if not isinstance(value, type):
        return
    for part in vars(value).values():
        for each in (part, getattr(part, "__func__", None), getattr(part, "func", None)):
            if isinstance(each, types.FunctionType):
                yield id(each)
        if isinstance(part, property):
            yield from (id(each) for each in (part.fget, part.fset, part.fdel))
