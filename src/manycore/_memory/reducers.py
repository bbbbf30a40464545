"""How values that plain pickle refuses, or pickles slowly, are pickled: a table from exact type to reducer.

Each reducer gets the pickler and the value, and returns a reduce value or NotImplemented ("as plain
pickle would"). The functions with a leading underscore rebuild, in the receiver.

NumPy is never imported here: its reducer enters the table once a program has imported it.
"""

# ruff: noqa: ARG001  (all reducers are called alike; few need the pickler)

from __future__ import annotations

import array
import copyreg
import functools
import sys
import types
import weakref
from _pickle import PickleBuffer
from collections.abc import Callable

from manycore._memory import namespaces, rebuild

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from typing import Any

    from manycore._memory.codec import Pickler

    Reducer = Callable[[Pickler, Any], Any]

OUT_OF_BAND_BYTES = 65536  # shorter buffers are copied faster than they are accounted for


def _as_plain(pickler: Pickler, value: Any) -> Any:
    return NotImplemented


# Functions and classes that were found to go by reference, by id: pickle looks them up by name anyway, and
# fails if the name has been bound to something else since; then these are forgotten, and it is tried again.
_references: dict[int, weakref.ref[Any]] = {}


def forget_references() -> bool:
    """Whether there were any."""
    known = bool(_references)
    _references.clear()
    return known


def _by_reference(value: Any) -> Any:
    identity = id(value)
    try:
        _references[identity] = weakref.ref(value, lambda _: _references.pop(identity, None) and None)
    except TypeError:
        pass
    return NotImplemented


def reduce_class(pickler: Pickler, value: type) -> Any:
    """A class of any metaclass."""
    known = _references.get(id(value))
    if known is not None and known() is value:
        return NotImplemented
    reduced = pickler.shipment.reduce_class(value)
    return _by_reference(value) if reduced is NotImplemented else reduced


def _reduce_function(pickler: Pickler, value: types.FunctionType) -> Any:
    known = _references.get(id(value))
    if known is not None and known() is value:
        return NotImplemented
    reduced = pickler.shipment.reduce_function(value, pickler.inline)
    return _by_reference(value) if reduced is NotImplemented else reduced


def _reduce_cell(pickler: Pickler, value: types.CellType) -> Any:
    return rebuild.reduce_cell(value)


def _reduce_module(pickler: Pickler, value: types.ModuleType) -> Any:
    if namespaces.importable(value.__name__):
        return rebuild.import_it, (value.__name__, ())
    pickler.shipment.need_module(value)
    return rebuild.shipped_module, (value.__name__,)


def _reduce_method(pickler: Pickler, value: types.MethodType) -> Any:
    owner, name = value.__self__, getattr(value.__func__, "__name__", "")
    if getattr(owner, name, None) == value:
        return getattr, (owner, name)
    return types.MethodType, (value.__func__, owner)


def _reduce_static(pickler: Pickler, value: Any) -> Any:
    return type(value), (value.__func__,)


def _reduce_property(pickler: Pickler, value: property) -> Any:
    return property, (value.fget, value.fset, value.fdel, value.__doc__)


def _reduce_cached_property(pickler: Pickler, value: functools.cached_property[Any]) -> Any:
    return _cached_property, (value.func, value.attrname)


def _cached_property(function: Any, name: str | None) -> functools.cached_property[Any]:
    made: functools.cached_property[Any] = functools.cached_property(function)
    if name is not None:
        made.__set_name__(object, name)
    return made


def _reduce_lru(pickler: Pickler, value: Any) -> Any:
    return pickler.shipment.reduce_wrapper(value, pickler.inline)


def _reduce_mapping_proxy(pickler: Pickler, value: types.MappingProxyType[Any, Any]) -> Any:
    return types.MappingProxyType, (value.copy(),)


def _reduce_weak_keys(pickler: Pickler, value: Any) -> Any:
    return _weak_dict, (type(value), list(value.items()))


def _weak_dict(kind: Any, items: list[tuple[Any, Any]]) -> Any:
    made = kind()
    for key, value in items:
        made[key] = value
    return made


def _reduce_weak_set(pickler: Pickler, value: weakref.WeakSet[Any]) -> Any:
    return weakref.WeakSet, (list(value),)


def _reduce_keys(pickler: Pickler, value: Any) -> Any:
    return _keys, (list(value),)


def _keys(items: list[Any]) -> Any:
    return dict.fromkeys(items).keys()


def _reduce_values(pickler: Pickler, value: Any) -> Any:
    return _values, (list(value),)


def _values(items: list[Any]) -> Any:
    return dict(enumerate(items)).values()


def _reduce_items(pickler: Pickler, value: Any) -> Any:
    return _items, (list(value),)


def _items(items: list[tuple[Any, Any]]) -> Any:
    return dict(items).items()


def _reduce_memoryview(pickler: Pickler, value: memoryview) -> Any:
    if value.c_contiguous:
        data: Any = PickleBuffer(value)
    else:
        data = value.tobytes() if value.readonly else bytearray(value.tobytes())
    return _memoryview, (data, value.format, value.shape)


def _memoryview(data: Any, code: str, shape: tuple[int, ...]) -> memoryview:
    flat = memoryview(data).cast("B")
    if len(shape) == 1 and code == "B":
        return flat
    if 0 in shape:
        return flat.cast(code)  # type: ignore[call-overload,no-any-return]
    return flat.cast(code, shape)  # type: ignore[call-overload,no-any-return]


def _reduce_array(pickler: Pickler, value: array.array[Any]) -> Any:
    if value.itemsize * len(value) < OUT_OF_BAND_BYTES:
        return NotImplemented
    return _array, (value.typecode, PickleBuffer(value))


def _array(code: str, data: Any) -> array.array[Any]:
    made: array.array[Any] = array.array(code)
    made.frombytes(data)
    return made


def _reduce_ndarray(pickler: Pickler, value: Any) -> Any:
    """An array as its shape, its dtype and one buffer: a third of the cost of NumPy's own, and no copy when large.

    NumPy's own pickling stays for objects and dtypes that NumPy does not define.
    """
    dtype = value.dtype
    flags = value.flags
    if dtype.num > _LAST_NUMPY_TYPE or dtype.hasobject or type(value) in copyreg.dispatch_table:
        return NotImplemented
    if dtype.isbuiltin == 1 and dtype.metadata is None:
        if flags.c_contiguous:
            return _ndarray, (value.shape, dtype.str, PickleBuffer(value), "C")
        if flags.f_contiguous:
            # transposed, since pickle in band cannot write a long buffer that is not in C order
            return _ndarray, (value.shape, dtype.str, PickleBuffer(value.T), "F")
    if dtype.itemsize == 0:
        return NotImplemented
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    whole = value if flags.c_contiguous or flags.f_contiguous else value.copy()
    flat = (whole.T if order == "F" else whole).reshape(-1).view("u1")
    flat.flags.writeable = flags.writeable
    return _ndarray, (value.shape, dtype, PickleBuffer(flat), order)


_LAST_NUMPY_TYPE = 23  # NPY_HALF: the numbers below 24 are NumPy's own types


def _ndarray(shape: tuple[int, ...], dtype: Any, data: Any, order: str) -> Any:
    global _numpy_array
    if _numpy_array is None:
        from numpy import ndarray as _numpy_array
    return _numpy_array(shape, dtype, data, 0, None, order)


_numpy_array: Any = None


def _reduce_type_variable(pickler: Pickler, value: Any) -> Any:
    if namespaces.find(value.__module__, value.__name__) is value and namespaces.importable(value.__module__):
        return NotImplemented
    flags = ("covariant", "contravariant", "infer_variance")
    options = {name: flag for name in flags if (flag := getattr(value, f"__{name}__", False))}
    bound = getattr(value, "__bound__", None)
    if bound is not None:
        options["bound"] = bound
    constraints = getattr(value, "__constraints__", ())
    return _type_variable, (type(value), (value.__name__, *constraints), options, value.__module__)


def _type_variable(kind: Any, arguments: tuple[Any, ...], options: dict[str, Any], module: str) -> Any:
    made = kind(*arguments, **options)
    made.__module__ = module
    return made


def _reduce_new_type(pickler: Pickler, value: Any) -> Any:
    if namespaces.find(value.__module__, value.__qualname__) is value and namespaces.importable(value.__module__):
        return NotImplemented
    return _type_variable, (type(value), (value.__name__, value.__supertype__), {}, value.__module__)


def _reduce_sentinel(pickler: Pickler, value: Any) -> Any:
    """The sentinels of `dataclasses` are compared by identity, which plain pickle loses."""
    module = sys.modules["dataclasses"]
    for name, each in vars(module).items():
        if each is value:
            return getattr, (module, name)
    return NotImplemented


REDUCERS: dict[type, Reducer] = {
    types.FunctionType: _reduce_function,
    type: reduce_class,
    types.ModuleType: _reduce_module,
    types.CellType: _reduce_cell,
    types.MethodType: _reduce_method,
    types.MappingProxyType: _reduce_mapping_proxy,
    staticmethod: _reduce_static,
    classmethod: _reduce_static,
    property: _reduce_property,
    functools.cached_property: _reduce_cached_property,
    functools._lru_cache_wrapper: _reduce_lru,
    weakref.WeakKeyDictionary: _reduce_weak_keys,
    weakref.WeakValueDictionary: _reduce_weak_keys,
    weakref.WeakSet: _reduce_weak_set,
    type({}.keys()): _reduce_keys,
    type({}.values()): _reduce_values,
    type({}.items()): _reduce_items,
    memoryview: _reduce_memoryview,
    array.array: _reduce_array,
    # ForkingPickler registers reducers for these that need multiprocessing in the receiver; they pickle well.
    functools.partial: _as_plain,
    types.MethodDescriptorType: _as_plain,
    types.WrapperDescriptorType: _as_plain,
}

_LATER: dict[tuple[str, str], Reducer] = {
    ("numpy", "ndarray"): _reduce_ndarray,
    ("typing", "TypeVar"): _reduce_type_variable,
    ("typing", "ParamSpec"): _reduce_type_variable,
    ("typing", "TypeVarTuple"): _reduce_type_variable,
    ("typing", "NewType"): _reduce_new_type,
    ("dataclasses", "_MISSING_TYPE"): _reduce_sentinel,
    ("dataclasses", "_FIELD_BASE"): _reduce_sentinel,
    ("dataclasses", "_KW_ONLY_TYPE"): _reduce_sentinel,
}


def meet(kind: type) -> Reducer | None:
    """The reducer for a type that is not in the table yet; enters it."""
    reducer = _LATER.get((kind.__module__, kind.__qualname__))
    if reducer is not None and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind:
        REDUCERS[kind] = reducer
        return reducer
    return None
