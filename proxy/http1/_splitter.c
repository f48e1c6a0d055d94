/* Splits the head of an HTTP/1.1 message into its lines, and puts one together: the compiled twin of
 * proxy/http1/splitter.py, which says what it does and is used where this could not be compiled. A head that is malformed in any way gives None; the reason is
 * found in Python. It reads the bytes once, never beyond `end`, and keeps no pointer into them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define SLOTS 128 /* a power of two, several times the names there are, so that a search ends soon */
#define MAX_NAMES 64

typedef struct {
    uint32_t hash;
    PyObject *name; /* lower case; NULL in an empty slot */
    PyObject *kind;
} Slot;

typedef struct {
    PyObject_HEAD
    int is_made;
    PyObject *gathered, *single; /* kinds: see splitter.py */
    Slot slots[SLOTS];
} Splitter;

/* RFC 9110 §5.6.2: what a token is made of, as lower case; 0 for everything else. */
static unsigned char lower_token[256];
/* RFC 9110 §5.5: what a value, or a first line, may hold. No control characters but tab, so no CR and no LF. */
static unsigned char is_text[256];

static void fill_tables(void)
{
    for (const char *c = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"; *c; c++)
        lower_token[(unsigned char)*c] = (unsigned char)*c;
    for (int c = 'A'; c <= 'Z'; c++)
        lower_token[c] = (unsigned char)(c + 32);
    for (int c = 0; c < 256; c++)
        is_text[c] = (c >= 32 && c != 127) || c == '\t';
}

/* FNV-1a. Names of peers' choosing are only looked up, never stored, so nobody gains by collisions. */
static inline uint32_t hash_more(uint32_t hash, unsigned char c)
{
    return (hash ^ c) * 16777619u;
}
#define HASH_START 2166136261u

static const Slot *find(const Splitter *self, uint32_t hash, const unsigned char *name, Py_ssize_t size)
{
    for (uint32_t at = hash;; at++) {
        const Slot *slot = &self->slots[at & (SLOTS - 1)];
        if (slot->name == NULL)
            return NULL;
        if (slot->hash == hash && PyBytes_GET_SIZE(slot->name) == size) {
            const unsigned char *known = (const unsigned char *)PyBytes_AS_STRING(slot->name);
            Py_ssize_t i = 0;
            while (i < size && known[i] == lower_token[name[i]])
                i++;
            if (i == size)
                return slot;
        }
    }
}

static int append(PyObject *list, PyObject *item)
{
    if (item == NULL)
        return -1;
    int failed = PyList_Append(list, item);
    Py_DECREF(item);
    return failed;
}

static PyObject *bytes_between(const unsigned char *start, const unsigned char *end)
{
    return PyBytes_FromStringAndSize((const char *)start, end - start);
}

/* What a head is made of so far. */
typedef struct {
    PyObject *first, *plain, *known, *single, *special;
    Py_ssize_t count;
} Parts;

/* The first field of a name is given by itself: 1 where that was done, 0 where there was one before, -1 on failure. */
static int gather(PyObject *known, PyObject *name, PyObject *value)
{
    int is_repeated = PyDict_Contains(known, name);
    if (is_repeated)
        return is_repeated < 0 ? -1 : 0;
    return PyDict_SetItem(known, name, value) ? -1 : 1;
}

static int add_special(const Splitter *self, Parts *parts, const Slot *slot, const unsigned char *value,
                       const unsigned char *end)
{
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    PyObject *bytes = bytes_between(value, end);
    if (bytes == NULL)
        return -1;
    int done = 0;
    if (slot->kind == self->gathered)
        done = gather(parts->known, slot->name, bytes);
    else if (slot->kind == self->single && parts->single == NULL) {
        parts->single = Py_NewRef(bytes);
        done = 1;
    }
    if (done == 0)
        done = append(parts->special, PyTuple_Pack(3, slot->kind, slot->name, bytes));
    Py_DECREF(bytes);
    return done < 0 ? -1 : 0;
}

static inline int is_line_end(const unsigned char *at, const unsigned char *end)
{
    return end - at >= 2 && at[0] == '\r' && at[1] == '\n';
}

static PyObject *splitter_split(Splitter *self, PyObject *head)
{
    if (!PyBytes_CheckExact(head)) {
        PyErr_SetString(PyExc_TypeError, "a head is bytes");
        return NULL;
    }
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(head);
    const unsigned char *const end = at + PyBytes_GET_SIZE(head);
    const unsigned char *line = at;
    while (at < end && is_text[*at])
        at++;
    if (!is_line_end(at, end))
        Py_RETURN_NONE;
    Parts parts = {bytes_between(line, at), PyList_New(0), PyDict_New(), NULL, PyList_New(0), 0};
    PyObject *split = NULL;
    if (parts.first == NULL || parts.plain == NULL || parts.known == NULL || parts.special == NULL)
        goto done;
    for (at += 2; !is_line_end(at, end); at += 2) {
        uint32_t hash = HASH_START;
        line = at;
        for (; at < end && lower_token[*at]; at++)
            hash = hash_more(hash, lower_token[*at]);
        const unsigned char *colon = at;
        if (at == line || at == end || *at != ':')
            goto malformed;
        while (at < end && is_text[*at])
            at++;
        if (!is_line_end(at, end))
            goto malformed;
        const Slot *slot = find(self, hash, line, colon - line);
        if (slot == NULL ? append(parts.plain, bytes_between(line, at))
                         : add_special(self, &parts, slot, colon + 1, at))
            goto done;
        parts.count++;
    }
    if (at + 2 != end)
        goto malformed;
    PyObject *count = PyLong_FromSsize_t(parts.count);
    if (count != NULL)
        split = PyTuple_Pack(6, parts.first, parts.plain, parts.known, parts.single ? parts.single : Py_None,
                             parts.special, count);
    Py_XDECREF(count);
    goto done;
malformed:
    split = Py_NewRef(Py_None);
done:
    Py_XDECREF(parts.first);
    Py_XDECREF(parts.plain);
    Py_XDECREF(parts.known);
    Py_XDECREF(parts.single);
    Py_XDECREF(parts.special);
    return split;
}

static int splitter_init(Splitter *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"kinds", "gathered", "single", NULL};
    PyObject *kinds, *name, *kind, *gathered, *single;
    Py_ssize_t position = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!", names, &PyDict_Type, &kinds, &PyLong_Type, &gathered,
                                     &PyLong_Type, &single))
        return -1;
    if (self->is_made || PyDict_GET_SIZE(kinds) > MAX_NAMES) {
        PyErr_SetString(PyExc_ValueError, "a splitter is made once, of at most 64 names");
        return -1;
    }
    self->is_made = 1;
    self->gathered = Py_NewRef(gathered);
    self->single = Py_NewRef(single);
    while (PyDict_Next(kinds, &position, &name, &kind)) {
        if (!PyBytes_CheckExact(name)) {
            PyErr_SetString(PyExc_TypeError, "names are bytes");
            return -1;
        }
        uint32_t hash = HASH_START;
        for (Py_ssize_t i = 0; i < PyBytes_GET_SIZE(name); i++)
            hash = hash_more(hash, (unsigned char)PyBytes_AS_STRING(name)[i]);
        uint32_t slot = hash;
        while (self->slots[slot & (SLOTS - 1)].name != NULL)
            slot++;
        /* Kinds are compared as objects later, so those that are equal have to be the same one. */
        int is_gathered = PyObject_RichCompareBool(kind, gathered, Py_EQ);
        int is_single = PyObject_RichCompareBool(kind, single, Py_EQ);
        if (is_gathered < 0 || is_single < 0)
            return -1;
        kind = is_gathered ? gathered : is_single ? single : kind;
        self->slots[slot & (SLOTS - 1)] = (Slot){hash, Py_NewRef(name), Py_NewRef(kind)};
    }
    return 0;
}

static void splitter_dealloc(Splitter *self)
{
    PyTypeObject *type = Py_TYPE(self);
    for (int i = 0; i < SLOTS; i++) {
        Py_XDECREF(self->slots[i].name);
        Py_XDECREF(self->slots[i].kind);
    }
    Py_XDECREF(self->gathered);
    Py_XDECREF(self->single);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* The bytes objects of a list or tuple, each with `between` more bytes; -1 where something else is in it. */
static Py_ssize_t size_of(PyObject *pieces, Py_ssize_t between)
{
    Py_ssize_t size = 0;
    if (!PyList_Check(pieces) && !PyTuple_Check(pieces))
        return -1;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(pieces); i++) {
        PyObject *piece = PySequence_Fast_GET_ITEM(pieces, i);
        if (!PyBytes_Check(piece))
            return -1;
        size += PyBytes_GET_SIZE(piece) + between;
    }
    return size;
}

static char *put_all(char *to, PyObject *pieces, int are_lines)
{
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(pieces); i++) {
        PyObject *piece = PySequence_Fast_GET_ITEM(pieces, i);
        memcpy(to, PyBytes_AS_STRING(piece), (size_t)PyBytes_GET_SIZE(piece));
        to += PyBytes_GET_SIZE(piece);
        if (are_lines) {
            *to++ = '\r';
            *to++ = '\n';
        }
    }
    return to;
}

static PyObject *join_head(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t front = -1, lines = -1, added = -1, tail = -1;
    if (count == 4) {
        front = size_of(args[0], 0);
        lines = size_of(args[1], 2);
        added = size_of(args[2], 2);
        tail = size_of(args[3], 0);
    }
    if (front < 0 || lines < 0 || added < 0 || tail < 0) {
        PyErr_SetString(PyExc_TypeError, "join_head(front, lines, added, tail): each a list or tuple of bytes");
        return NULL;
    }
    PyObject *head = PyBytes_FromStringAndSize(NULL, front + 2 + lines + added + tail);
    if (head == NULL)
        return NULL;
    char *to = put_all(PyBytes_AS_STRING(head), args[0], 0);
    *to++ = '\r';
    *to++ = '\n';
    put_all(put_all(put_all(to, args[1], 1), args[2], 1), args[3], 0);
    return head;
}

static PyMethodDef functions[] = {
    {"join_head", (PyCFunction)(void (*)(void))join_head, METH_FASTCALL, "See proxy/http1/splitter.py."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef splitter_methods[] = {
    {"split", (PyCFunction)splitter_split, METH_O, "See proxy/http1/splitter.py."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot splitter_slots[] = {
    {Py_tp_doc, "Splits heads; see proxy/http1/splitter.py."},
    {Py_tp_init, splitter_init},
    {Py_tp_dealloc, splitter_dealloc},
    {Py_tp_methods, splitter_methods},
    {0, NULL},
};

static PyType_Spec splitter_spec = {
    .name = "proxy.http1._splitter.Splitter",
    .basicsize = sizeof(Splitter),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = splitter_slots,
};

static int module_exec(PyObject *module)
{
    fill_tables();
    PyObject *type = PyType_FromSpec(&splitter_spec);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Splitter", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "proxy.http1._splitter",
    .m_doc = "The compiled twin of proxy/http1/splitter.py.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__splitter(void)
{
    return PyModuleDef_Init(&module);
}
