/* Writes an access log entry as one line of JSON: the compiled twin of json_line in mesh/telemetry/accesslog.py, which
 * does it where this could not be compiled, and always where something has to be escaped: then this gives None.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdio.h>
#include <string.h>

#define FIELDS 22
#define ROOM 8192 /* a path of 2048 bytes, other fields of 256; what is longer is left to the twin */

typedef struct {
    char *at;
    char *end;
} Line;

/* Printable ASCII but for the quote and the backslash. */
static unsigned char is_plain[256];

static int put(Line *line, const char *text, Py_ssize_t size)
{
    if (line->end - line->at < size)
        return -1;
    memcpy(line->at, text, (size_t)size);
    line->at += size;
    return 0;
}
#define PUT(text) put(line, text, sizeof(text) - 1)

static int put_plain(Line *line, const unsigned char *text, Py_ssize_t size)
{
    if (line->end - line->at < size)
        return -1;
    char *at = line->at;
    for (Py_ssize_t i = 0; i < size; i++) {
        if (!is_plain[text[i]])
            return -1;
        at[i] = (char)text[i];
    }
    line->at += size;
    return 0;
}

/* The characters of a str or bytes; -1 where it is neither, or not ASCII. */
static int characters(PyObject *value, const unsigned char **text, Py_ssize_t *size)
{
    if (PyBytes_CheckExact(value)) {
        *text = (const unsigned char *)PyBytes_AS_STRING(value);
        *size = PyBytes_GET_SIZE(value);
        return 0;
    }
    if (PyUnicode_CheckExact(value) && PyUnicode_IS_COMPACT_ASCII(value)) {
        *text = (const unsigned char *)PyUnicode_1BYTE_DATA(value);
        *size = PyUnicode_GET_LENGTH(value);
        return 0;
    }
    return -1;
}

static int put_text(Line *line, PyObject *value)
{
    const unsigned char *text;
    Py_ssize_t size;
    return characters(value, &text, &size) || PUT("\"") || put_plain(line, text, size) || PUT("\"") ? -1 : 0;
}

static int put_or(Line *line, PyObject *value, const char *absent)
{
    const unsigned char *text;
    Py_ssize_t size;
    if (value == Py_None)
        return put(line, absent, (Py_ssize_t)strlen(absent));
    if (characters(value, &text, &size))
        return -1;
    return size == 0 ? put(line, absent, (Py_ssize_t)strlen(absent)) : put_text(line, value);
}

static int put_number(Line *line, PyObject *value)
{
    char text[24];
    if (!PyLong_CheckExact(value))
        return -1;
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return -1;
    }
    return put(line, text, snprintf(text, sizeof text, "%lld", number));
}

/* Seconds as milliseconds with up to three decimals, at least one: as Python and JSON write the same float. */
static int put_ms(Line *line, double seconds)
{
    char text[40];
    double us = seconds * 1e6;
    if (!(us >= 0 && us < 1e15))
        return -1;
    long long whole = (long long)us;
    int size = snprintf(text, sizeof text, "%lld.%03d", whole / 1000, (int)(whole % 1000));
    if (text[size - 1] == '0')
        size -= text[size - 2] == '0' ? 2 : 1;
    return put(line, text, size);
}

static double seconds_of(PyObject *value)
{
    return PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : -1.0;
}

static int write_line(Line *line, PyObject *entry, PyObject *time)
{
#define FIELD(i) PyTuple_GET_ITEM(entry, i)
    double started = seconds_of(FIELD(0)), ended = seconds_of(FIELD(1)), upstream = seconds_of(FIELD(2));
    const unsigned char *version;
    Py_ssize_t size;
    if (started < 0 || ended < 0 || upstream < 0 || characters(FIELD(5), &version, &size))
        return -1;
    if (PUT("{\"start_time\":") || put_text(line, time) || PUT(",\"method\":") || put_text(line, FIELD(3)) ||
        PUT(",\"path\":") || put_text(line, FIELD(4)) || PUT(",\"protocol\":"))
        return -1;
    if (size == 0 ? PUT("\"-\"") : PUT("\"HTTP/") || put_plain(line, version, size) || PUT("\""))
        return -1;
    if (PUT(",\"response_code\":") || put_number(line, FIELD(6)) || PUT(",\"response_flags\":") ||
        put_or(line, FIELD(7), "\"-\"") || PUT(",\"bytes_received\":") || put_number(line, FIELD(8)) ||
        PUT(",\"bytes_sent\":") || put_number(line, FIELD(9)) || PUT(",\"duration\":") ||
        put_ms(line, ended - started) || PUT(",\"upstream_service_time\":"))
        return -1;
    if (upstream == 0 ? PUT("null") : put_ms(line, upstream))
        return -1;
    return PUT(",\"x_forwarded_for\":") || put_or(line, FIELD(10), "null") || PUT(",\"user_agent\":") ||
                   put_or(line, FIELD(11), "null") || PUT(",\"request_id\":") || put_or(line, FIELD(12), "null") ||
                   PUT(",\"authority\":") || put_text(line, FIELD(13)) || PUT(",\"upstream_host\":") ||
                   put_or(line, FIELD(14), "null") || PUT(",\"listener\":") || put_text(line, FIELD(15)) ||
                   PUT(",\"downstream_address\":") || put_text(line, FIELD(16)) || PUT(",\"trace_id\":") ||
                   put_or(line, FIELD(17), "null") || PUT(",\"route\":") || put_or(line, FIELD(18), "null") ||
                   PUT(",\"cluster\":") || put_or(line, FIELD(19), "null") || PUT(",\"retries\":") ||
                   put_number(line, FIELD(20)) || PUT(",\"error\":") || put_or(line, FIELD(21), "null") || PUT("}\n")
               ? -1
               : 0;
}

static PyObject *json_line(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    char room[ROOM];
    Line line = {room, room + ROOM};
    if (count != 2 || !PyTuple_Check(args[0]) || PyTuple_GET_SIZE(args[0]) != FIELDS) {
        PyErr_SetString(PyExc_TypeError, "an entry, and its time as text");
        return NULL;
    }
    if (write_line(&line, args[0], args[1]))
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(room, line.at - room);
}

static PyMethodDef functions[] = {
    {"json_line", (PyCFunction)(void (*)(void))json_line, METH_FASTCALL, "See mesh/telemetry/accesslog.py."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    (void)module;
    for (int c = 0x20; c < 0x7f; c++)
        is_plain[c] = c != '"' && c != '\\';
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mesh.telemetry._log_line",
    .m_doc = "The compiled twin of json_line in mesh/telemetry/accesslog.py.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__log_line(void)
{
    return PyModuleDef_Init(&module);
}
