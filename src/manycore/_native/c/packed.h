/* Small plain values to bytes and back, without pickle: numbers, strings, bytes, containers of them, and NumPy arrays.
 *
 *     value     one tag byte, then
 *     N T F     nothing: None, True, False
 *     i d       8 bytes: an int that fits, a float
 *     s b       u32 length, the bytes: str as UTF-8, bytes
 *     ( [ {     u32 count, the parts (of a dict: key, value, key, ...)
 *     a         dtype's character, 1 if read-only, number of dimensions, one i64 a dimension, the items in C's order
 *     =         u8: the n-th of the s, b and a before it, once more; so that what was one object is one object
 *
 * Two passes: the first says whether the value is one for this and how long the message is, the second writes it. In
 * between nothing can change, because no Python code runs. An array's dtype is one of NumPy's own, in native order,
 * known by its address (`mc_dtypes`), so neither side builds or compares dtypes.
 *
 * Whatever else a value holds (a container that is met twice, a subclass, a large array) makes the first pass say no;
 * pickle then does it. A reader checks every length against the end, because a message lies in shared memory. */
#ifndef MANYCORE_PACKED_H
#define MANYCORE_PACKED_H

#include <Python.h>
#include <stdint.h>
#include <string.h>

#define MC_PACKED_MARK 0x02    /* the first byte of a message; a pickle's is 0x80 */
#define MC_PACKED_PARTS 128    /* more parts than this: pickle is as good */
#define MC_PACKED_DEPTH 8
#define MC_PACKED_ARRAYS 16    /* in one message */
#define MC_PACKED_BYTES 65536  /* longer buffers may travel out of band, which pickle does */
#define MC_PACKED_DIMENSIONS 8
#define MC_SEEN 256            /* places of the hash of addresses; twice MC_PACKED_PARTS, so never full */

/* Of NumPy, once this process has met an array. All are kept for ever. */
static PyTypeObject *mc_array_type;  /* numpy.ndarray; the last to be set */
static PyObject *mc_empty;           /* numpy.empty */
static PyObject *mc_copyreg;         /* copyreg.dispatch_table: who registers arrays there, pickles them himself */
static PyObject *mc_dtype_name, *mc_setflags_name, *mc_write_names;
static const char mc_dtype_chars[] = "dfli?BbhHILqQegDFG"; /* the most used ones first */
#define MC_DTYPES ((int)sizeof mc_dtype_chars - 1)
static PyObject *mc_dtypes[MC_DTYPES];

/* Get to know NumPy, which is imported where it is not yet; 0, or -1 with an error. */
static int mc_learn(void)
{
    PyObject *numpy = PyImport_ImportModule("numpy"), *copyreg = PyImport_ImportModule("copyreg"), *type = NULL;
    int i;
    if (numpy == NULL || copyreg == NULL)
        goto failed;
    for (i = 0; i < MC_DTYPES; i++) {
        Py_XDECREF(mc_dtypes[i]);
        if ((mc_dtypes[i] = PyObject_CallMethod(numpy, "dtype", "C", mc_dtype_chars[i])) == NULL)
            goto failed;
    }
    if ((mc_empty = PyObject_GetAttrString(numpy, "empty")) == NULL
        || (mc_copyreg = PyObject_GetAttrString(copyreg, "dispatch_table")) == NULL
        || (mc_dtype_name = PyUnicode_InternFromString("dtype")) == NULL
        || (mc_setflags_name = PyUnicode_InternFromString("setflags")) == NULL
        || (mc_write_names = Py_BuildValue("(s)", "write")) == NULL
        || (type = PyObject_GetAttrString(numpy, "ndarray")) == NULL)
        goto failed;
    mc_array_type = (PyTypeObject *)type;
    Py_DECREF(numpy);
    Py_DECREF(copyreg);
    return 0;
failed:
    Py_XDECREF(numpy);
    Py_XDECREF(copyreg);
    return -1;
}

typedef struct {
    Py_ssize_t size; /* of the message */
    int parts, leaves, arrays;
    uint8_t seen_any;
    uint8_t seen_leaf[MC_SEEN];   /* of `seen`: 1 + the number of a leaf; 0 of a container */
    PyObject *seen[MC_SEEN];      /* addresses met so far, hashed; only of objects that others refer to as well */
    Py_buffer array[MC_PACKED_ARRAYS];
    char array_char[MC_PACKED_ARRAYS];
} mc_packer;

/* -1: not met before (and entered); 0 and more: the leaf of this number; -2: a container that was met before. */
static int mc_met(mc_packer *p, PyObject *value, int leaf)
{
    unsigned at;
    if (Py_REFCNT(value) == 1)
        return -1;
    if (!p->seen_any) {
        memset(p->seen, 0, sizeof p->seen);
        p->seen_any = 1;
    }
    for (at = (unsigned)((uintptr_t)value >> 4) % MC_SEEN; p->seen[at] != NULL; at = (at + 1) % MC_SEEN)
        if (p->seen[at] == value)
            return p->seen_leaf[at] ? p->seen_leaf[at] - 1 : -2;
    p->seen[at] = value;
    p->seen_leaf[at] = (uint8_t)leaf;
    return -1;
}

static int mc_measure_array(mc_packer *p, PyObject *value)
{
    Py_buffer *view = &p->array[p->arrays];
    PyObject *dtype;
    int i;
    if (p->arrays == MC_PACKED_ARRAYS)
        return 0;
    dtype = PyObject_GetAttr(value, mc_dtype_name);
    if (dtype == NULL)
        goto refuse;
    for (i = 0; i < MC_DTYPES && mc_dtypes[i] != dtype; i++) {
    }
    Py_DECREF(dtype);
    if (i == MC_DTYPES)
        return 0;
    if (PyDict_GetItemWithError(mc_copyreg, (PyObject *)mc_array_type) != NULL || PyErr_Occurred())
        goto refuse;
    if (PyObject_GetBuffer(value, view, PyBUF_ND) < 0) /* also when it is not contiguous */
        goto refuse;
    p->array_char[p->arrays++] = mc_dtype_chars[i];
    if (view->len >= MC_PACKED_BYTES || view->ndim > MC_PACKED_DIMENSIONS)
        return 0;
    p->size += 3 + 8 * view->ndim + view->len;
    return 1;
refuse:
    PyErr_Clear();
    return 0;
}

/* 1 when `value` can be packed. `wanted` is set when it might be, once NumPy is known. */
static int mc_measure(mc_packer *p, PyObject *value, int depth, int *wanted)
{
    PyTypeObject *type = Py_TYPE(value);
    int met;
    p->size++;
    if (++p->parts > MC_PACKED_PARTS)
        return 0;
    if (value == Py_None || type == &PyBool_Type)
        return 1;
    if (type == &PyLong_Type) {
        int overflow;
        p->size += 8;
        PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow;
    }
    if (type == &PyFloat_Type) {
        p->size += 8;
        return 1;
    }
    if (type == &PyUnicode_Type || type == &PyBytes_Type || type == mc_array_type) {
        met = mc_met(p, value, p->leaves + 1);
        if (met >= 0) {
            p->size++;
            return 1;
        }
        p->leaves++;
        if (type == mc_array_type)
            return mc_measure_array(p, value);
        Py_ssize_t length = 0;
        if (type == &PyBytes_Type)
            length = PyBytes_GET_SIZE(value);
        else if (PyUnicode_GET_LENGTH(value) >= MC_PACKED_BYTES)
            return 0;
        else if (PyUnicode_AsUTF8AndSize(value, &length) == NULL) { /* lone surrogates */
            PyErr_Clear();
            return 0;
        }
        p->size += 4 + length;
        return length < MC_PACKED_BYTES;
    }
    if (depth == 0)
        return 0;
    p->size += 4;
    if (type == &PyTuple_Type || type == &PyList_Type) {
        int is_tuple = type == &PyTuple_Type;
        Py_ssize_t n = Py_SIZE(value), i;
        if (n > MC_PACKED_PARTS || (n && mc_met(p, value, 0) != -1))
            return 0;
        for (i = 0; i < n; i++)
            if (!mc_measure(p, is_tuple ? PyTuple_GET_ITEM(value, i) : PyList_GET_ITEM(value, i), depth - 1, wanted))
                return 0;
        return 1;
    }
    if (type == &PyDict_Type) {
        PyObject *key, *part;
        Py_ssize_t at = 0;
        if (PyDict_GET_SIZE(value) > MC_PACKED_PARTS || mc_met(p, value, 0) != -1)
            return 0;
        while (PyDict_Next(value, &at, &key, &part))
            if (!mc_measure(p, key, depth - 1, wanted) || !mc_measure(p, part, depth - 1, wanted))
                return 0;
        return 1;
    }
    if (mc_array_type == NULL && strcmp(type->tp_name, "numpy.ndarray") == 0)
        *wanted = 1;
    return 0;
}

typedef struct {
    mc_packer *packer;
    uint8_t *at;
    int leaves, arrays;
} mc_writer;

static inline void mc_put_tag(mc_writer *w, char tag, const void *data, size_t size)
{
    *w->at++ = (uint8_t)tag;
    memcpy(w->at, data, size);
    w->at += size;
}

static inline void mc_put_bytes(mc_writer *w, char tag, const char *data, Py_ssize_t length)
{
    uint32_t size = (uint32_t)length;
    mc_put_tag(w, tag, &size, sizeof size);
    memcpy(w->at, data, size);
    w->at += size;
}

/* The number of the leaf that `value` repeats; -1 when it is new. */
static int mc_repeats(mc_writer *w, PyObject *value)
{
    mc_packer *p = w->packer;
    unsigned at;
    if (p->seen_any && Py_REFCNT(value) != 1)
        for (at = (unsigned)((uintptr_t)value >> 4) % MC_SEEN; p->seen[at] != NULL; at = (at + 1) % MC_SEEN)
            if (p->seen[at] == value) {
                if (p->seen_leaf[at] - 1 < w->leaves)
                    return p->seen_leaf[at] - 1;
                break;
            }
    w->leaves++;
    return -1;
}

/* Writes what `mc_measure` has accepted. */
static void mc_write(mc_writer *w, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (value == Py_None)
        *w->at++ = 'N';
    else if (type == &PyBool_Type)
        *w->at++ = value == Py_True ? 'T' : 'F';
    else if (type == &PyLong_Type) {
        int overflow;
        int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
        mc_put_tag(w, 'i', &number, sizeof number);
    } else if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(value);
        mc_put_tag(w, 'd', &number, sizeof number);
    } else if (type == &PyTuple_Type || type == &PyList_Type) {
        int is_tuple = type == &PyTuple_Type;
        uint32_t n = (uint32_t)Py_SIZE(value), i;
        mc_put_tag(w, is_tuple ? '(' : '[', &n, sizeof n);
        for (i = 0; i < n; i++)
            mc_write(w, is_tuple ? PyTuple_GET_ITEM(value, i) : PyList_GET_ITEM(value, i));
    } else if (type == &PyDict_Type) {
        PyObject *key, *part;
        Py_ssize_t at = 0;
        uint32_t n = (uint32_t)PyDict_GET_SIZE(value);
        mc_put_tag(w, '{', &n, sizeof n);
        while (PyDict_Next(value, &at, &key, &part)) {
            mc_write(w, key);
            mc_write(w, part);
        }
    } else {
        int repeats = mc_repeats(w, value);
        if (repeats >= 0) {
            uint8_t number = (uint8_t)repeats;
            mc_put_tag(w, '=', &number, 1);
        } else if (type == &PyUnicode_Type) {
            Py_ssize_t length;
            const char *text = PyUnicode_AsUTF8AndSize(value, &length); /* cached by mc_measure: cannot fail */
            mc_put_bytes(w, 's', text, length);
        } else if (type == &PyBytes_Type) {
            mc_put_bytes(w, 'b', PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
        } else {
            Py_buffer *view = &w->packer->array[w->arrays];
            char head[3] = {w->packer->array_char[w->arrays++], (char)view->readonly, (char)view->ndim};
            mc_put_tag(w, 'a', head, sizeof head);
            for (int i = 0; i < view->ndim; i++) {
                int64_t length = view->shape[i];
                memcpy(w->at, &length, sizeof length);
                w->at += sizeof length;
            }
            memcpy(w->at, view->buf, (size_t)view->len);
            w->at += view->len;
        }
    }
}

/* The message; None when the value is not one for this; NULL with an error. `arrays_only`: only when it has an array. */
static PyObject *mc_pack(PyObject *value, int arrays_only)
{
    mc_packer p;
    PyObject *message = Py_None;
    int wanted = 0;
    p.size = 1;
    p.parts = p.leaves = p.arrays = p.seen_any = 0;
    if (mc_measure(&p, value, MC_PACKED_DEPTH, &wanted) && (p.arrays || !arrays_only)) {
        message = PyBytes_FromStringAndSize(NULL, p.size);
        if (message != NULL) {
            mc_writer w = {&p, (uint8_t *)PyBytes_AS_STRING(message), 0, 0};
            *w.at++ = MC_PACKED_MARK;
            mc_write(&w, value);
        }
    } else
        Py_INCREF(message);
    while (p.arrays)
        PyBuffer_Release(&p.array[--p.arrays]);
    if (wanted && mc_array_type == NULL) {
        if (mc_learn() == 0) {
            Py_DECREF(message);
            return mc_pack(value, arrays_only);
        }
        PyErr_Clear();
    }
    return message;
}

typedef struct {
    const uint8_t *at, *end;
    int leaves;
    PyObject *leaf[MC_PACKED_PARTS]; /* borrowed: each is in a container that is alive, or is the value itself */
} mc_reader;

static PyObject *mc_cut_short(void)
{
    PyErr_SetString(PyExc_EOFError, "a packed message is cut short or damaged");
    return NULL;
}

static inline int mc_get(mc_reader *r, void *into, size_t size)
{
    if ((size_t)(r->end - r->at) < size)
        return 0;
    memcpy(into, r->at, size);
    r->at += size;
    return 1;
}

static PyObject *mc_read_array(mc_reader *r)
{
    uint8_t head[3];
    int64_t length;
    PyObject *shape, *array;
    Py_buffer view;
    const char *known;
    if (mc_array_type == NULL && mc_learn() < 0)
        return NULL;
    if (!mc_get(r, head, sizeof head) || head[2] > MC_PACKED_DIMENSIONS || head[0] == 0
        || (known = strchr(mc_dtype_chars, head[0])) == NULL)
        return mc_cut_short();
    if ((shape = PyTuple_New(head[2])) == NULL)
        return NULL;
    for (int i = 0; i < head[2]; i++) {
        PyObject *number = mc_get(r, &length, sizeof length) ? PyLong_FromLongLong(length) : mc_cut_short();
        if (number == NULL) {
            Py_DECREF(shape);
            return NULL;
        }
        PyTuple_SET_ITEM(shape, i, number);
    }
    PyObject *arguments[2] = {shape, mc_dtypes[known - mc_dtype_chars]};
    array = PyObject_Vectorcall(mc_empty, arguments, 2, NULL);
    Py_DECREF(shape);
    if (array == NULL || PyObject_GetBuffer(array, &view, PyBUF_WRITABLE) < 0) {
        Py_XDECREF(array);
        return NULL;
    }
    if (r->end - r->at < view.len) {
        PyBuffer_Release(&view);
        Py_DECREF(array);
        return mc_cut_short();
    }
    memcpy(view.buf, r->at, (size_t)view.len);
    r->at += view.len;
    PyBuffer_Release(&view);
    if (head[1]) {
        PyObject *with[2] = {array, Py_False};
        PyObject *done = PyObject_VectorcallMethod(mc_setflags_name, with, 1, mc_write_names);
        Py_XDECREF(done);
        if (done == NULL)
            Py_CLEAR(array);
    }
    return array;
}

static PyObject *mc_read(mc_reader *r, int depth)
{
    PyObject *made;
    uint32_t n = 0, i;
    uint8_t tag;
    if (depth < 0 || !mc_get(r, &tag, 1))
        return mc_cut_short();
    switch (tag) {
    case 'N':
        Py_RETURN_NONE;
    case 'T':
        Py_RETURN_TRUE;
    case 'F':
        Py_RETURN_FALSE;
    case 'i': {
        int64_t number;
        return mc_get(r, &number, sizeof number) ? PyLong_FromLongLong(number) : mc_cut_short();
    }
    case 'd': {
        double number;
        return mc_get(r, &number, sizeof number) ? PyFloat_FromDouble(number) : mc_cut_short();
    }
    case '=': {
        uint8_t number;
        if (!mc_get(r, &number, 1) || number >= r->leaves)
            return mc_cut_short();
        made = r->leaf[number];
        Py_INCREF(made);
        return made;
    }
    case 's':
    case 'b':
    case 'a':
        if (r->leaves == MC_PACKED_PARTS)
            return mc_cut_short();
        if (tag == 'a')
            made = mc_read_array(r);
        else {
            if (!mc_get(r, &n, sizeof n) || (size_t)(r->end - r->at) < n)
                return mc_cut_short();
            made = tag == 's' ? PyUnicode_DecodeUTF8((const char *)r->at, n, NULL)
                              : PyBytes_FromStringAndSize((const char *)r->at, n);
            r->at += n;
        }
        if (made != NULL)
            r->leaf[r->leaves++] = made;
        return made;
    case '(':
    case '[':
        if (!mc_get(r, &n, sizeof n) || n > MC_PACKED_PARTS)
            return mc_cut_short();
        made = tag == '(' ? PyTuple_New(n) : PyList_New(n);
        if (made == NULL)
            return NULL;
        for (i = 0; i < n; i++) {
            PyObject *part = mc_read(r, depth - 1);
            if (part == NULL) {
                Py_DECREF(made);
                return NULL;
            }
            if (tag == '(')
                PyTuple_SET_ITEM(made, i, part);
            else
                PyList_SET_ITEM(made, i, part);
        }
        return made;
    case '{':
        if (!mc_get(r, &n, sizeof n) || n > MC_PACKED_PARTS)
            return mc_cut_short();
        if ((made = PyDict_New()) == NULL)
            return NULL;
        for (i = 0; i < n; i++) {
            PyObject *key = mc_read(r, depth - 1), *part = NULL;
            int failed = key == NULL || (part = mc_read(r, depth - 1)) == NULL || PyDict_SetItem(made, key, part) < 0;
            Py_XDECREF(key);
            Py_XDECREF(part);
            if (failed) {
                Py_DECREF(made);
                return NULL;
            }
        }
        return made;
    default:
        return mc_cut_short();
    }
}

static PyObject *mc_unpack(const uint8_t *message, Py_ssize_t size)
{
    mc_reader r;
    r.at = message + 1;
    r.end = message + size;
    r.leaves = 0;
    return mc_read(&r, MC_PACKED_DEPTH);
}

#endif
