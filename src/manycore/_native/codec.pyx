# cython: language_level=3
"""What the codec asks of every value before it pickles it: is this made of plain builtin values?

A value made of exact builtin types needs no reducer, so the one C call `pickle.dumps` is right for
it and costs a third of what a pickler object costs. The scan stops early: a value with more than
LIMIT parts goes to the general pickler, whose set-up cost it no longer notices.
"""

from cpython.object cimport PyObject

cdef extern from *:
    """
    #include <Python.h>

    #define MC_PLAIN_LIMIT 128   /* parts; scanning one costs about 2 ns, a pickler about 800 ns */
    #define MC_PLAIN_DEPTH 8
    #define MC_PLAIN_BYTES 65536 /* longer buffers may travel out of band */

    /* Counts the parts of `value` down from `budget`; negative when it is not plain, or too large. */
    static int mc_plain(PyObject *value, int budget, int depth)
    {
        PyTypeObject *type = Py_TYPE(value);
        if (--budget < 0)
            return -1;
        if (type == &PyLong_Type || type == &PyFloat_Type || value == Py_None || type == &PyBool_Type
            || type == &PyUnicode_Type || type == &PyComplex_Type)
            return budget;
        if (type == &PyBytes_Type)
            return PyBytes_GET_SIZE(value) < MC_PLAIN_BYTES ? budget : -1;
        if (type == &PyByteArray_Type)
            return PyByteArray_GET_SIZE(value) < MC_PLAIN_BYTES ? budget : -1;
        if (depth <= 0)
            return -1;
        if (type == &PyTuple_Type || type == &PyList_Type) {
            int is_tuple = type == &PyTuple_Type;
            Py_ssize_t n = Py_SIZE(value), i;
            if (n > budget)
                return -1;
            for (i = 0; i < n; i++) {
                PyObject *part = is_tuple ? PyTuple_GET_ITEM(value, i) : PyList_GET_ITEM(value, i);
                budget = mc_plain(part, budget, depth - 1);
                if (budget < 0)
                    return -1;
            }
            return budget;
        }
        if (type == &PyDict_Type) {
            PyObject *key, *part;
            Py_ssize_t at = 0;
            if (PyDict_GET_SIZE(value) > budget)
                return -1;
            while (PyDict_Next(value, &at, &key, &part)) {
                budget = mc_plain(key, budget, depth - 1);
                if (budget >= 0)
                    budget = mc_plain(part, budget, depth - 1);
                if (budget < 0)
                    return -1;
            }
            return budget;
        }
        return -1;
    }
    static int mc_is_plain(PyObject *value) { return mc_plain(value, MC_PLAIN_LIMIT, MC_PLAIN_DEPTH) >= 0; }
    """
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
