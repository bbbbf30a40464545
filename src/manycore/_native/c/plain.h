/* Is a value made of plain builtin values? Then the one C call `pickle.dumps` is right for it. */
#ifndef MANYCORE_PLAIN_H
#define MANYCORE_PLAIN_H

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

#endif
