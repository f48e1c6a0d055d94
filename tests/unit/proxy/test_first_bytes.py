"""What first bytes tell, with a row for each protocol that could be mistaken."""

import pytest

from mesh.http.message import METHODS
from proxy.first_bytes import MAX_LINE_BYTES, PREFACE_LINE, Spoken, likely, spoken

HTTP, BYTES = Spoken.HTTP, Spoken.BYTES

TOLD = [
    (b"GET / HTTP/1.1\r\n", HTTP),
    (b"GET / HTTP/1.", HTTP),
    (b"GET / HTTP/1.0\n", HTTP),
    (b"OPTIONS * HTTP/1.1\r\n", HTTP),
    (b"CONNECT pay:80 HTTP/1.1\r\n", HTTP),
    (b"GET http://pay/ HTTP/1.1\r\n", HTTP),
    (b"PROPFIND /\xc3\xa4 HTTP/1.1\r\n", HTTP),
    (b"PRI * HTTP/2.0\r\n", HTTP),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP),
    (b"GET /" + b"x" * MAX_LINE_BYTES, HTTP),  # for the codec to refuse
    (b"\x16\x03\x01", BYTES),  # TLS where nobody has a certificate: the program's own
    (b"*1\r\n$4\r\nPING\r\n", BYTES),  # Redis
    (b"GET key\r\n", BYTES),  # Redis' inline commands
    (b"GET /key\r\n", BYTES),
    (b"get key\r\n", BYTES),  # memcached
    (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", BYTES),  # PostgreSQL's SSLRequest
    (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", BYTES),
    (b"OPTIONS * RTSP/1.0\r\n", BYTES),
    (b"OPTIONS sip:a@b SIP/2.0\r\n", BYTES),
    (b'CONNECT {"verbose":true}\r\n', BYTES),  # NATS
    (b"CONNECT\naccept-version:1.2\n", BYTES),  # STOMP
    (b"\x10\x10\x00\x04MQTT", BYTES),
    (b"AMQP\x00\x00\x09\x01", BYTES),
    (b"SSH-2.0-x\r\n", BYTES),
    (b"PRI * HTTP/3", BYTES),
    (b"GET  / HTTP/1.1\r\n", BYTES),
    (b"GET / HTTP/2.0\r\n", BYTES),
    (b"BREW / HTTP/1.1\r\n", BYTES),
    (b"\r\nGET / HTTP/1.1\r\n", BYTES),
    (b" ", BYTES),
    (b"G\x00", BYTES),
    (b"PROX", BYTES),
]


@pytest.mark.parametrize(("data", "told"), TOLD, ids=lambda each: repr(each)[:30])
def test_a_beginning_tells_what_is_spoken(data: bytes, told: Spoken) -> None:
    assert spoken(data) is told
    assert spoken(data + b"\x00more GET / HTTP/1.1") is told


@pytest.mark.parametrize(
    ("data", "assumed"),
    [(b"", BYTES), (b"G", BYTES), (b"GET", BYTES), (b"GET ", HTTP), (b"GET /a", HTTP), (b"GET / HTT", HTTP),
     (b"PRI", BYTES), (b"PRI * ", HTTP)],
)  # fmt: skip
def test_what_tells_nothing_yet_is_assumed_once_it_falls_silent(data: bytes, assumed: Spoken) -> None:
    assert spoken(data) is None
    assert likely(data) is assumed


def test_one_byte_that_can_begin_no_method_is_enough() -> None:
    begins = {method[0] for method in METHODS} | {PREFACE_LINE[0]}
    assert {byte for byte in range(256) if spoken(bytes([byte])) is None} == begins
