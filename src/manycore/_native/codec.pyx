# cython: language_level=3
"""What the codec asks of every value before it pickles it: is this made of plain builtin values?

A value made of exact builtin types needs no reducer, so the one C call `pickle.dumps` is right for
it and costs a third of what a pickler object costs. The scan stops early: a value with more than
LIMIT parts goes to the general pickler, whose set-up cost it no longer notices.
"""

from types import ModuleType
from weakref import ReferenceType

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject

cdef extern from "plain.h":
    bint mc_is_plain(object value)


def is_plain(object value) -> bool:
    """Whether `value` is small and made of exact builtin types, so that `pickle.dumps` is right at once."""
    return mc_is_plain(value)


cdef extern from *:
    """
    /* The interpreter's number for the present state of a class; 0 where it gives none. */
    static unsigned int mc_type_version(PyObject *value)
    {
        if (!PyType_Check(value))
            return 0;
        PyTypeObject *type = (PyTypeObject *)value;
    #if PY_VERSION_HEX >= 0x030C0000
        if (!PyUnstable_Type_AssignVersionTag(type))
            return 0;
    #else
        if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) {
            PyObject *found = PyObject_GetAttrString(value, "__init__"); /* a look-up assigns one */
            if (found == NULL)
                PyErr_Clear();
            Py_XDECREF(found);
            if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG))
                return 0;
        }
    #endif
        return type->tp_version_tag;
    }
    """
    unsigned int mc_type_version(object value)


def type_version(object cls) -> int:
    """A number that changes whenever an attribute of `cls` or of a base is set; 0 where there is none."""
    return mc_type_version(cls)


cdef extern from "Python.h":
    """
    static PyObject *mc_function_dict(PyObject *function) { return ((PyFunctionObject *)function)->func_dict; }
    """
    bint PyFunction_Check(object value)
    PyObject *PyFunction_GetCode(object function)
    PyObject *PyFunction_GetGlobals(object function)
    PyObject *PyFunction_GetDefaults(object function)
    PyObject *PyFunction_GetClosure(object function)
    PyObject *PyFunction_GetKwDefaults(object function)
    PyObject *mc_function_dict(object function)
    PyObject *PyCell_GET(object cell)

cdef type _REFERENCE = ReferenceType


cdef class Unchanged:
    """Whether a function is what it was when it was pickled, so that pickling it again would give the same.

    Args:
        code: Its code, as a weak reference.
        home: A weak reference to what has its globals: a module, or an object with an attribute `globals`.
        defaults: Its defaults.
        variables: What its closure's variables were: values, or weak references to them.
        only: The function itself, as a weak reference, where no other of the same code will do.
        more: Asked last; None for nothing.
    """

    cdef object code, home, defaults, only, more
    cdef list variables

    def __init__(self, code, home, defaults, list variables, only, more):
        self.code = code
        self.home = home
        self.defaults = defaults
        self.variables = variables
        self.only = only
        self.more = more

    def __call__(self, function) -> bool:
        cdef PyObject *found
        cdef Py_ssize_t i, count = len(self.variables)
        cdef tuple cells
        if not PyFunction_Check(function):
            return False
        held = self.code()
        if PyFunction_GetCode(function) != <PyObject *>held:
            return False
        found = PyFunction_GetDefaults(function)
        if found != <PyObject *>self.defaults and not (found == NULL and self.defaults is None):
            return False
        found = PyFunction_GetKwDefaults(function)
        if found != NULL and found != <PyObject *>None:
            return False
        found = mc_function_dict(function)
        if found != NULL and len(<dict>found):
            return False
        home = self.home()
        if home is None:
            return False
        globals_ = home.__dict__ if type(home) is ModuleType else home.globals
        if PyFunction_GetGlobals(function) != <PyObject *>globals_:
            return False
        found = PyFunction_GetClosure(function)
        cells = () if found == NULL else <tuple>found
        if len(cells) != count:
            return False
        for i in range(count):
            found = PyCell_GET(cells[i])
            if found == NULL:  # an empty variable
                return False
            was = self.variables[i]
            if found != <PyObject *>was:
                held = was() if type(was) is _REFERENCE else None
                if held is None or found != <PyObject *>held:
                    return False
        if self.only is not None and self.only() is not function:
            return False
        return self.more is None or self.more()


cdef extern from "fingerprint.h":
    unsigned long long mc_fingerprint(const void *data, size_t size) nogil


def fingerprint(object data) -> int:
    """A number of 64 bits for the bytes of a contiguous buffer, as fast as they are read; not against forgers."""
    cdef Py_buffer view
    cdef unsigned long long found
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        found = mc_fingerprint(view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return found


cdef extern from "packed.h":
    object mc_pack(object value, bint arrays_only)
    object mc_unpack(const unsigned char *message, Py_ssize_t size)
    const int MC_PACKED_MARK

PACKED_MARK = MC_PACKED_MARK  # the first byte of what `pack` gives


def pack(object value, bint arrays_only=False):
    """A small plain value as bytes, several times faster than by pickle; None where it is not one.

    Args:
        value: What may be made of None, bool, int, float, str, bytes, tuple, list, dict, and NumPy arrays of NumPy's
            own types; small, and without any container twice.
        arrays_only: None also for values without arrays, for which `pickle.dumps` is nearly as fast.
    """
    return mc_pack(value, arrays_only)


def unpack(data, Py_ssize_t start=0):
    """The value that `pack` made these bytes of, from `start` on; its arrays have memory of their own.

    Raises:
        EOFError: The bytes are damaged.
    """
    cdef Py_buffer view
    if type(data) is bytes:
        if not 0 <= start < PyBytes_GET_SIZE(data):
            raise EOFError("a packed message is empty")
        return mc_unpack(<const unsigned char *>PyBytes_AS_STRING(data) + start, PyBytes_GET_SIZE(data) - start)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= start < view.len:
            raise EOFError("a packed message is empty")
        return mc_unpack(<const unsigned char *>view.buf + start, view.len - start)
    finally:
        PyBuffer_Release(&view)
