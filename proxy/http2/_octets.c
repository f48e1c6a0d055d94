/* What HTTP/2 does octet by octet: the compiled twin of proxy/http2/octets.py, which says what each function does and is
 * used where this could not be compiled. Nothing is read beyond the end of what was given, and no pointer is kept.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define FRAME_HEAD 9
#define MAX_FRAME 16384
#define HEADER_LIST_BYTES (64 * 1024)

/* RFC 7541 appendix A, in its order. */
static const struct {
    const char *name;
    const char *value;
} table[] = {
    {":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"},
    {":scheme", "http"}, {":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"},
    {":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"}, {"accept-charset", ""},
    {"accept-encoding", "gzip, deflate"}, {"accept-language", ""}, {"accept-ranges", ""}, {"accept", ""},
    {"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
    {"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""},
    {"content-location", ""}, {"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""},
    {"expect", ""}, {"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""}, {"if-modified-since", ""},
    {"if-none-match", ""}, {"if-range", ""}, {"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""},
    {"location", ""}, {"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""}, {"range", ""},
    {"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""}, {"set-cookie", ""},
    {"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""}, {"via", ""},
    {"www-authenticate", ""},
};
#define ENTRIES ((int)(sizeof table / sizeof table[0]))
#define MAX_NAME 32

/* The first entry with a name of that length, and for each entry the next one with a name of its length; 0: none. */
static unsigned char first_of[MAX_NAME], next_of[ENTRIES + 1], name_size[ENTRIES + 1], value_size[ENTRIES + 1];
/* RFC 9110 §5.6.2 without capitals (RFC 9113 §8.2.1). */
static unsigned char is_lower_token[256];
static unsigned char is_text[256];

static void fill_tables(void)
{
    for (const char *c = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"; *c; c++)
        is_lower_token[(unsigned char)*c] = 1;
    for (int c = 0; c < 256; c++)
        is_text[c] = (c >= 32 && c != 127) || c == '\t';
    memset(first_of, 0, sizeof first_of);
    for (int i = ENTRIES; i >= 1; i--) {
        name_size[i] = (unsigned char)strlen(table[i - 1].name);
        value_size[i] = (unsigned char)strlen(table[i - 1].value);
        next_of[i] = first_of[name_size[i]];
        first_of[name_size[i]] = (unsigned char)i;
    }
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

static PyObject *join_data(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "join_data(buffer: bytes, position: int)");
        return NULL;
    }
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]), start = PyLong_AsSsize_t(args[1]), total = 0, empty = 0;
    if (start == -1 && PyErr_Occurred())
        return NULL;
    if (start < 0 || size - start < FRAME_HEAD) {
        PyErr_SetString(PyExc_ValueError, "there is no frame at that position");
        return NULL;
    }
    Py_ssize_t end = start;
    while (size - end >= FRAME_HEAD && memcmp(data + end + 3, data + start + 3, FRAME_HEAD - 3) == 0) {
        Py_ssize_t length = (Py_ssize_t)data[end] << 16 | data[end + 1] << 8 | data[end + 2];
        if (length > MAX_FRAME || length > size - end - FRAME_HEAD)
            break;
        total += length;
        empty += !length;
        end += FRAME_HEAD + length;
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, total);
    if (joined == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(joined);
    for (Py_ssize_t at = start; at < end;) {
        Py_ssize_t length = (Py_ssize_t)data[at] << 16 | data[at + 1] << 8 | data[at + 2];
        memcpy(to, data + at + FRAME_HEAD, (size_t)length);
        to += length;
        at += FRAME_HEAD + length;
    }
    return Py_BuildValue("(Nnn)", joined, end, empty);
}

static PyObject *frame(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyBytes_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "frame(kind: int, flags: int, number: int, payload: bytes)");
        return NULL;
    }
    long kind = PyLong_AsLong(args[0]), flags = PyLong_AsLong(args[1]);
    long long number = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t size = PyBytes_GET_SIZE(args[3]);
    if (kind < 0 || kind > 255 || flags < 0 || flags > 255 || number < 0 || number > 0x7fffffff || size > 0xffffff) {
        PyErr_SetString(PyExc_ValueError, "that is more than a frame has room for");
        return NULL;
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, FRAME_HEAD + size);
    if (made == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(made);
    to[0] = (unsigned char)(size >> 16);
    to[1] = (unsigned char)(size >> 8);
    to[2] = (unsigned char)size;
    to[3] = (unsigned char)kind;
    to[4] = (unsigned char)flags;
    to[5] = (unsigned char)(number >> 24);
    to[6] = (unsigned char)(number >> 16);
    to[7] = (unsigned char)(number >> 8);
    to[8] = (unsigned char)number;
    memcpy(to + FRAME_HEAD, PyBytes_AS_STRING(args[3]), (size_t)size);
    return made;
}

/* --- header blocks ------------------------------------------------------------------------------------------------ */

/* A field as a pair of bytes objects, borrowed; 0 and an exception where it is none. */
static int as_pair(PyObject *field, PyObject **name, PyObject **value)
{
    if (PyTuple_Check(field) && PyTuple_GET_SIZE(field) >= 2) {
        *name = PyTuple_GET_ITEM(field, 0);
        *value = PyTuple_GET_ITEM(field, 1);
        if (PyBytes_Check(*name) && PyBytes_Check(*value))
            return 1;
    }
    PyErr_SetString(PyExc_TypeError, "a field is a pair of bytes");
    return 0;
}

/* RFC 7541 §5.1. Ten octets are enough for any size there can be. */
static unsigned char *put_integer(unsigned char *to, unsigned pattern, int prefix, size_t value)
{
    size_t limit = ((size_t)1 << prefix) - 1;
    if (value < limit) {
        *to++ = (unsigned char)(pattern | value);
        return to;
    }
    *to++ = (unsigned char)(pattern | limit);
    for (value -= limit; value >= 128; value >>= 7)
        *to++ = (unsigned char)((value & 127) | 128);
    *to++ = (unsigned char)value;
    return to;
}

static unsigned char *put_string(unsigned char *to, const char *data, Py_ssize_t size)
{
    to = put_integer(to, 0x00, 7, (size_t)size);
    memcpy(to, data, (size_t)size);
    return to + size;
}

static int is_credential(const char *name, Py_ssize_t size)
{
    return (size == 6 && memcmp(name, "cookie", 6) == 0) || (size == 10 && memcmp(name, "set-cookie", 10) == 0)
        || (size == 13 && memcmp(name, "authorization", 13) == 0)
        || (size == 19 && memcmp(name, "proxy-authorization", 19) == 0);
}

static unsigned char *put_field(unsigned char *to, PyObject *name, PyObject *value)
{
    const char *name_at = PyBytes_AS_STRING(name), *value_at = PyBytes_AS_STRING(value);
    Py_ssize_t name_bytes = PyBytes_GET_SIZE(name), value_bytes = PyBytes_GET_SIZE(value);
    int named = 0;
    for (int i = name_bytes < MAX_NAME ? first_of[name_bytes] : 0; i; i = next_of[i]) {
        if (memcmp(table[i - 1].name, name_at, (size_t)name_bytes) != 0)
            continue;
        if (value_size[i] && value_size[i] == value_bytes
            && memcmp(table[i - 1].value, value_at, (size_t)value_bytes) == 0)
            return put_integer(to, 0x80, 7, (size_t)i);
        if (!named)
            named = i;
    }
    unsigned pattern = is_credential(name_at, name_bytes) ? 0x10 : 0x00;
    to = put_integer(to, pattern, 4, (size_t)named);
    if (!named)
        to = put_string(to, name_at, name_bytes);
    return put_string(to, value_at, value_bytes);
}

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *fields)
{
    if (!PyList_Check(fields)) {
        PyErr_SetString(PyExc_TypeError, "encode(fields: list)");
        return NULL;
    }
    PyObject *name, *value;
    Py_ssize_t most = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fields); i++) {
        if (!as_pair(PyList_GET_ITEM(fields, i), &name, &value))
            return NULL;
        most += PyBytes_GET_SIZE(name) + PyBytes_GET_SIZE(value) + 32;
    }
    PyObject *block = PyBytes_FromStringAndSize(NULL, most);
    if (block == NULL)
        return NULL;
    unsigned char *start = (unsigned char *)PyBytes_AS_STRING(block), *to = start;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fields); i++) {
        if (!as_pair(PyList_GET_ITEM(fields, i), &name, &value)) {
            Py_DECREF(block);
            return NULL;
        }
        to = put_field(to, name, value);
    }
    _PyBytes_Resize(&block, to - start);
    return block;
}

/* --- fields -------------------------------------------------------------------------------------------------------- */

static PyObject *pairs(PyObject *Py_UNUSED(module), PyObject *fields)
{
    if (!PyList_Check(fields)) {
        PyErr_SetString(PyExc_TypeError, "pairs(fields: list)");
        return NULL;
    }
    Py_ssize_t size = PyList_GET_SIZE(fields);
    PyObject *made = PyList_New(size), *name, *value;
    if (made == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *pair = as_pair(PyList_GET_ITEM(fields, i), &name, &value) ? PyTuple_Pack(2, name, value) : NULL;
        if (pair == NULL) {
            Py_DECREF(made);
            return NULL;
        }
        PyList_SET_ITEM(made, i, pair);
    }
    return made;
}

static PyObject *split_lines(PyObject *Py_UNUSED(module), PyObject *lines)
{
    if (!PyList_Check(lines)) {
        PyErr_SetString(PyExc_TypeError, "split_lines(lines: list)");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(lines);
    PyObject *made = PyList_New(count);
    for (Py_ssize_t i = 0; made != NULL && i < count; i++) {
        PyObject *line = PyList_GET_ITEM(lines, i);
        if (!PyBytes_Check(line)) {
            PyErr_SetString(PyExc_TypeError, "a line is bytes");
            Py_CLEAR(made);
            break;
        }
        const char *text = PyBytes_AS_STRING(line), *at = text;
        Py_ssize_t size = PyBytes_GET_SIZE(line);
        while ((at = memchr(at, ':', (size_t)(text + size - at))) != NULL && (at + 1 == text + size || at[1] != ' '))
            at++;
        PyObject *pair = at == NULL ? Py_BuildValue("(Oy)", line, "")
                                    : Py_BuildValue("(y#y#)", text, (Py_ssize_t)(at - text), at + 2,
                                                    (Py_ssize_t)(text + size - at - 2));
        if (pair == NULL)
            Py_CLEAR(made);
        else
            PyList_SET_ITEM(made, i, pair);
    }
    return made;
}

static PyObject *list_bytes(PyObject *Py_UNUSED(module), PyObject *fields)
{
    if (!PyList_Check(fields)) {
        PyErr_SetString(PyExc_TypeError, "list_bytes(fields: list)");
        return NULL;
    }
    PyObject *name, *value;
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fields); i++) {
        if (!as_pair(PyList_GET_ITEM(fields, i), &name, &value))
            return NULL;
        size += PyBytes_GET_SIZE(name) + PyBytes_GET_SIZE(value) + 32;
    }
    return PyLong_FromSsize_t(size);
}

static int is_good_name(const unsigned char *name, Py_ssize_t size)
{
    Py_ssize_t i = size && name[0] == ':';
    if (i == size)
        return 0;
    for (; i < size; i++)
        if (!is_lower_token[name[i]])
            return 0;
    return 1;
}

static int is_good_value(const unsigned char *value, Py_ssize_t size)
{
    if (size && (value[0] == ' ' || value[0] == '\t' || value[size - 1] == ' ' || value[size - 1] == '\t'))
        return 0;
    for (Py_ssize_t i = 0; i < size; i++)
        if (!is_text[value[i]])
            return 0;
    return 1;
}

static PyObject *is_well_formed(PyObject *Py_UNUSED(module), PyObject *fields)
{
    if (!PyList_Check(fields)) {
        PyErr_SetString(PyExc_TypeError, "is_well_formed(fields: list)");
        return NULL;
    }
    PyObject *name, *value;
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fields); i++) {
        if (!as_pair(PyList_GET_ITEM(fields, i), &name, &value))
            return NULL;
        size += PyBytes_GET_SIZE(name) + PyBytes_GET_SIZE(value) + 32;
        if (size > HEADER_LIST_BYTES)
            Py_RETURN_FALSE;
        if (!is_good_name((const unsigned char *)PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
            || !is_good_value((const unsigned char *)PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)))
            Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

/* --- header blocks that come (RFC 7541) --------------------------------------------------------------------------- */

/* Appendix B: how many symbols there are of each length. The code is a canonical one, so that this says where each
 * symbol ends: too_many[n] are the 30 bits that are too many to begin a symbol of n bits. */
static const unsigned char of_length[31] = {
    [5] = 10, [6] = 26, [7] = 32, [8] = 6, [10] = 5, [11] = 3, [12] = 2, [13] = 6, [14] = 2, [15] = 3, [19] = 3,
    [20] = 8, [21] = 13, [22] = 26, [23] = 29, [24] = 12, [25] = 4, [26] = 15, [27] = 19, [28] = 29, [30] = 4,
};
#define EOS 0x3FFFFFFFu
static uint32_t too_many[31];

static void fill_huffman(void)
{
    uint32_t code = 0;
    for (int length = 1; length <= 30; length++) {
        code = (code << 1) + of_length[length];
        too_many[length] = code << (30 - length);
    }
}

static int is_padded(const unsigned char *text, Py_ssize_t size)
{
    uint64_t left = 0; /* its lowest ``bits`` are yet to be read */
    int bits = 0;
    for (;;) {
        while (bits < 32 && size) {
            left = left << 8 | *text++;
            bits += 8;
            size--;
        }
        uint32_t window = (uint32_t)(bits >= 30 ? left >> (bits - 30) : ((left + 1) << (30 - bits)) - 1) & EOS;
        int length = 5;
        while (window >= too_many[length] && length < 30)
            length++;
        if (length > bits)
            return bits < 8 && (left & ((1u << bits) - 1)) == (1u << bits) - 1;
        if (window == EOS)
            return 0;
        bits -= length;
    }
}

/* A number of ``prefix`` bits at ``*at``, which goes behind it; -1 where it has no end, or more than five bytes. */
static int64_t read_integer(const unsigned char **at, const unsigned char *end, int prefix)
{
    int64_t limit = (1 << prefix) - 1, number = *(*at)++ & limit;
    if (number < limit)
        return number;
    for (int shift = 0; shift < 28 && *at < end; shift += 7) {
        unsigned char byte = *(*at)++;
        number += (int64_t)(byte & 127) << shift;
        if (byte < 128)
            return number;
    }
    return -1;
}

static const char *fault_of(const unsigned char *at, const unsigned char *end)
{
    int at_start = 1;
    while (at < end) {
        int strings = 0;
        unsigned char first = *at;
        int64_t number;
        if ((first & 0xE0) == 0x20) {
            number = read_integer(&at, end, 5);
            if (!at_start)
                return "a change of the table's size behind a field (§4.2)";
            if (number > 4096)
                return "a table of more than 4096 bytes (§6.3)";
        } else {
            at_start = 0;
            number = read_integer(&at, end, first & 0x80 ? 7 : first & 0x40 ? 6 : 4);
            strings = first & 0x80 ? 0 : number ? 1 : 2;
        }
        if (number < 0)
            return "a number without an end, or out of all bounds (§5.1)";
        for (; strings; strings--) {
            if (at == end)
                return "it ends within a field (§6)";
            int is_huffman = *at & 0x80;
            number = read_integer(&at, end, 7);
            if (number < 0)
                return "a number without an end, or out of all bounds (§5.1)";
            if (number > end - at)
                return "it ends within a field (§6)";
            if (is_huffman && !is_padded(at, (Py_ssize_t)number))
                return "a text in Huffman's code that ends within a symbol, or in anything but a few ones (§5.2)";
            at += number;
        }
    }
    return NULL;
}

static PyObject *block_fault(PyObject *Py_UNUSED(module), PyObject *block)
{
    if (!PyBytes_Check(block)) {
        PyErr_SetString(PyExc_TypeError, "block_fault(block: bytes)");
        return NULL;
    }
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(block);
    const char *fault = fault_of(at, at + PyBytes_GET_SIZE(block));
    if (fault == NULL)
        Py_RETURN_NONE;
    return PyUnicode_FromString(fault);
}

static PyMethodDef functions[] = {
    {"block_fault", block_fault, METH_O, "See proxy/http2/octets.py."},
    {"join_data", (PyCFunction)(void (*)(void))join_data, METH_FASTCALL, "See proxy/http2/octets.py."},
    {"frame", (PyCFunction)(void (*)(void))frame, METH_FASTCALL, "See proxy/http2/octets.py."},
    {"split_lines", split_lines, METH_O, "See proxy/http2/octets.py."},
    {"list_bytes", list_bytes, METH_O, "See proxy/http2/octets.py."},
    {"encode", encode, METH_O, "See proxy/http2/octets.py."},
    {"pairs", pairs, METH_O, "See proxy/http2/octets.py."},
    {"is_well_formed", is_well_formed, METH_O, "See proxy/http2/octets.py."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *Py_UNUSED(module))
{
    fill_tables();
    fill_huffman();
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "proxy.http2._octets",
    .m_doc = "The compiled twin of proxy/http2/octets.py.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__octets(void)
{
    return PyModuleDef_Init(&module);
}
