"""How much and how long a peer may take on an HTTP/1.1 connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How large a head may be."""

    line_bytes: int = 16 * 1024  # twice what RFC 9112 §3 asks for at least; most servers take 8 to 16 KiB
    head_bytes: int = 60 * 1024  # Envoy's max_request_headers_kb
    count: int = 100  # Envoy's max_headers_count


DEFAULT_LIMITS = HeadLimits()


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long, in seconds, and how much a client may take."""

    head: HeadLimits = DEFAULT_LIMITS
    head_s: float = 10.0  # a head fits one packet or few; slower ones are Slowloris
    idle_s: float = 3600.0  # Envoy's idle_timeout
    first_byte_s: float = 60.0  # a connection that never asked anything
    peek_s: float = 0.2  # where first bytes decide: far above what a client takes to send them, below what is noticed
    stall_s: float = 300.0  # Envoy's stream_idle_timeout: an exchange in which the client neither sends nor takes
    tunnel_idle_s: float = 3600.0  # Envoy's tcp_proxy idle_timeout: a WebSocket or TCP in which nothing moves
    pipelined_bytes: int = 64 * 1024  # read ahead at most this much behind a request that is being served
    discard_bytes: int = 256 * 1024  # of a body nobody wants any more, before the connection is closed instead
    linger_s: float = 2.0  # after an error, time for the client to read it before a reset could overtake it
