/* Writes access log entries as lines of JSON: the compiled twin of escaped_json_line in mesh/telemetry/accesslog.py,
 * which does it where this could not be compiled, and always for an entry in which something has to be escaped.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define FIELDS 23
#define ROOM 8192 /* a path of 2048 bytes, other fields of 256; what is longer is left to the twin */
#define USUAL 640 /* bytes of a line, to begin with */

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

static int put_count(Line *line, unsigned long long number)
{
    char text[20];
    char *at = text + sizeof text;
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    return put(line, at, text + sizeof text - at);
}

static int put_number(Line *line, PyObject *value)
{
    if (!PyLong_CheckExact(value))
        return -1;
    int beyond;
    long long number = PyLong_AsLongLongAndOverflow(value, &beyond);
    return beyond || number < 0 ? -1 : put_count(line, (unsigned long long)number);
}

/* Seconds as milliseconds with up to three decimals, at least one: as Python and JSON write the same float. */
static int put_ms(Line *line, double seconds)
{
    double us = seconds * 1e6;
    if (!(us >= 0 && us < 1e15))
        return -1;
    unsigned long long whole = (unsigned long long)us;
    unsigned rest = (unsigned)(whole % 1000);
    char text[4] = {'.', (char)('0' + rest / 100), (char)('0' + rest / 10 % 10), (char)('0' + rest % 10)};
    int size = rest % 10 ? 4 : rest % 100 ? 3 : 2;
    return put_count(line, whole / 1000) || put(line, text, size) ? -1 : 0;
}

static double seconds_of(PyObject *value)
{
    return PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : -1.0;
}

/* The time of day, as Clock makes it; the part up to the second is made once a second. */
typedef struct {
    long long second;
    char text[sizeof "2026-11-22T10:00:00.123Z" + 8]; /* a year of more digits is refused below */
} Clock;
#define CLOCK_SIZE 24

static int set_clock(Clock *clock, double unix_s)
{
    if (!(unix_s >= 0 && unix_s < 253402300799.0)) /* the year 9999 */
        return -1;
    long long ms = (long long)(unix_s * 1000.0 + 0.5);
    if (ms / 1000 != clock->second) {
        struct tm parts;
        time_t second = (time_t)(ms / 1000);
        if (gmtime_r(&second, &parts) == NULL ||
            strftime(clock->text, sizeof clock->text, "%Y-%m-%dT%H:%M:%S.000Z", &parts) != CLOCK_SIZE)
            return -1;
        clock->second = ms / 1000;
    }
    int rest = (int)(ms % 1000);
    clock->text[20] = (char)('0' + rest / 100);
    clock->text[21] = (char)('0' + rest / 10 % 10);
    clock->text[22] = (char)('0' + rest % 10);
    return 0;
}

static int write_line(Line *line, PyObject *entry, Clock *clock, double offset)
{
#define FIELD(i) PyTuple_GET_ITEM(entry, i)
    double started = seconds_of(FIELD(0)), ended = seconds_of(FIELD(1)), upstream = seconds_of(FIELD(2));
    const unsigned char *version;
    Py_ssize_t size;
    if (started < 0 || ended < 0 || upstream < 0 || set_clock(clock, started + offset) ||
        characters(FIELD(5), &version, &size))
        return -1;
    if (PUT("{\"start_time\":\"") || put(line, clock->text, CLOCK_SIZE) || PUT("\",\"method\":") || put_text(line, FIELD(3)) ||
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
                   put_number(line, FIELD(20)) || PUT(",\"grpc_status\":") ||
                   (FIELD(21) == Py_None ? PUT("null") : put_number(line, FIELD(21))) || PUT(",\"error\":") ||
                   put_or(line, FIELD(22), "null") || PUT("}\n")
               ? -1
               : 0;
}

/* The twin's line behind what there is; -1 with an exception. */
static int append_from(PyObject *twin, PyObject *entry, PyObject **lines, Py_ssize_t *used)
{
    PyObject *text = PyObject_CallOneArg(twin, entry);
    if (text == NULL)
        return -1;
    if (!PyBytes_Check(text)) {
        PyErr_SetString(PyExc_TypeError, "the twin must give bytes");
        Py_DECREF(text);
        return -1;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(text);
    if (PyBytes_GET_SIZE(*lines) - *used < size && _PyBytes_Resize(lines, *used + size + ROOM)) {
        Py_DECREF(text);
        return -1;
    }
    memcpy(PyBytes_AS_STRING(*lines) + *used, PyBytes_AS_STRING(text), (size_t)size);
    *used += size;
    Py_DECREF(text);
    return 0;
}

static PyObject *json_lines(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyList_Check(args[0]) || !PyFloat_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "a list of entries, the seconds that make Unix time of theirs, and the twin");
        return NULL;
    }
    PyObject *entries = args[0], *twin = args[2];
    double offset = PyFloat_AS_DOUBLE(args[1]);
    Clock clock = {.second = -1};
    Py_ssize_t used = 0;
    PyObject *lines = PyBytes_FromStringAndSize(NULL, PyList_GET_SIZE(entries) * USUAL + ROOM);
    if (lines == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(entries); i++) {
        PyObject *entry = PyList_GET_ITEM(entries, i);
        if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != FIELDS) {
            PyErr_SetString(PyExc_TypeError, "an entry is a tuple of 23 fields");
            goto failed;
        }
        if (PyBytes_GET_SIZE(lines) - used < ROOM && _PyBytes_Resize(&lines, used + used / 2 + ROOM))
            return NULL;
        Line line = {PyBytes_AS_STRING(lines) + used, PyBytes_AS_STRING(lines) + used + ROOM};
        if (write_line(&line, entry, &clock, offset) == 0) {
            used = line.at - PyBytes_AS_STRING(lines);
            continue;
        }
        Py_INCREF(entry); /* the twin is Python, and the list is not ours */
        int failed = append_from(twin, entry, &lines, &used);
        Py_DECREF(entry);
        if (failed)
            goto failed;
    }
    return _PyBytes_Resize(&lines, used) ? NULL : lines;
failed:
    Py_XDECREF(lines);
    return NULL;
}

static PyMethodDef functions[] = {
    {"json_lines", (PyCFunction)(void (*)(void))json_lines, METH_FASTCALL, "See mesh/telemetry/accesslog.py."},
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
    .m_doc = "The compiled twin of escaped_json_line in mesh/telemetry/accesslog.py.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__log_line(void)
{
    return PyModuleDef_Init(&module);
}
