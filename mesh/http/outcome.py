"""How an exchange can end other than by an endpoint's own answer: a closed tree, one class per outcome.

All facts of an outcome stand together: the HTTP status, the gRPC status, the response flag (Envoy's words), the
error type of RFC 9209 §2.3 and whose fault it is. The message says what is wrong and what to do.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import ClassVar


class Grpc(IntEnum):
    """gRPC status codes that the mesh itself answers (gRPC over HTTP/2, appendix A)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Fault(Enum):
    """Whose doing an outcome is; outlier detection counts UPSTREAM only."""

    CLIENT = "client"
    MESH = "mesh"
    UPSTREAM = "upstream"


class ProxyError(Exception):
    """An exchange that the mesh answers itself, or gives up.

    ``not_sent`` True: no byte of the request reached the endpoint's program, so that it may be sent again
    whatever its method is.
    """

    http_status: ClassVar[int] = 500
    grpc_status: Grpc = Grpc.INTERNAL
    """Of the class; one error's own where an endpoint has said more than that."""
    flag: ClassVar[str] = "-"
    error_type: ClassVar[str] = "proxy_internal_error"
    fault: ClassVar[Fault] = Fault.MESH
    closes: ClassVar[bool] = False
    """The downstream connection cannot be used after it."""

    def __init__(self, message: str, *, not_sent: bool = False) -> None:
        """``message`` is one line for the person who has to mend it."""
        super().__init__(message)
        self.message = message
        self.not_sent = not_sent


class InternalError(ProxyError):
    """A bug of ours; the message names the exception, the log has its trace."""

    @classmethod
    def of(cls, error: Exception) -> InternalError:
        """For an exception that nobody expected."""
        return cls(f"bug in the sidecar ({type(error).__name__}: {error}); its log has the trace")


# --- what the client sent -------------------------------------------------------------------------------------------


class BadRequest(ProxyError):
    """Not HTTP, or HTTP that two readers could understand differently (RFC 9112)."""

    http_status, grpc_status, flag, error_type, fault = (
        400,
        Grpc.INVALID_ARGUMENT,
        "DPE",
        "http_request_error",
        Fault.CLIENT,
    )
    closes = True


class UriTooLong(BadRequest):
    """The request line is over its limit (RFC 9110 §15.5.15)."""

    http_status = 414


class HeadersTooLarge(BadRequest):
    """The header section is over its limit (RFC 6585 §5)."""

    http_status = 431


class RequestTimeout(BadRequest):
    """The client took too long to send its request (RFC 9110 §15.5.9)."""

    http_status, flag, error_type = 408, "SI", "http_request_error"


class NotImplementedMethod(BadRequest):
    """A method this sidecar does not carry (RFC 9110 §15.6.2)."""

    http_status, grpc_status = 501, Grpc.UNIMPLEMENTED


class VersionNotSupported(BadRequest):
    """Another version than HTTP/1.0 or HTTP/1.1 (RFC 9110 §15.6.6)."""

    http_status = 505


class ExpectationFailed(BadRequest):
    """An Expect other than 100-continue (RFC 9110 §10.1.1)."""

    http_status = 417


class ClientGone(ProxyError):
    """The client closed before it had its answer; 499 stands in logs and metrics only."""

    http_status, grpc_status, flag, error_type, fault = 499, Grpc.CANCELLED, "DC", "connection_terminated", Fault.CLIENT
    closes = True


# --- what the mesh cannot or will not do ----------------------------------------------------------------------------


class NoRoute(ProxyError):
    """No service of that name, or none of its routes takes the request."""

    http_status, grpc_status, flag, error_type = 404, Grpc.UNIMPLEMENTED, "NR", "destination_not_found"
    fault = Fault.CLIENT


class ConnectDenied(ProxyError):
    """CONNECT to a port that it is not allowed to, or to a service of the mesh."""

    http_status, grpc_status, flag, error_type = 403, Grpc.PERMISSION_DENIED, "NR", "http_request_denied"
    fault = Fault.CLIENT
    closes = True


class NoTable(ProxyError):
    """The sidecar has never had a routing table and may not route without one."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "NR", "proxy_configuration_error"


class DiscoveryUnavailable(ProxyError):
    """Nobody could be asked where the service is."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "NC", "dns_error"


class NeverRegistered(DiscoveryUnavailable):
    """The service is wanted (an upstream, or a route names it), and no instance of it was ever seen."""


class InvalidBackend(ProxyError):
    """The backend drawn is no service that discovery knows, or the rule has no backends (Gateway API: 500)."""

    http_status, grpc_status, flag, error_type = 500, Grpc.UNAVAILABLE, "NC", "proxy_configuration_error"


class ZeroWeights(ProxyError):
    """Every backend of the rule has weight 0: deliberately drained."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "UH", "destination_unavailable"


class NoHealthyEndpoint(ProxyError):
    """Every endpoint of the cluster is ejected, draining or gone."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "UH", "destination_unavailable"
    fault = Fault.UPSTREAM


class Overflow(ProxyError):
    """A circuit breaker of the cluster, or a limit of the sidecar, is reached."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "UO", "connection_limit_reached"


class LoopDetected(ProxyError):
    """The request came back to the sidecar that sent it (RFC 5842 §7.2)."""

    http_status, grpc_status, flag, error_type = 508, Grpc.INTERNAL, "NR", "proxy_loop_detected"
    fault = Fault.CLIENT


class TunnelIdle(ProxyError):
    """Nothing has passed through a tunnel for long."""

    http_status, grpc_status, flag, error_type = 408, Grpc.UNAVAILABLE, "SI", "connection_timeout"
    fault = Fault.CLIENT
    closes = True


class Draining(ProxyError):
    """The sidecar stops and has waited long enough."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "DRAIN", "destination_unavailable"
    closes = True


# --- what went wrong with the endpoint ------------------------------------------------------------------------------


class ConnectFailed(ProxyError):
    """No connection to the endpoint; the request was not sent."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "UF", "connection_refused"
    fault = Fault.UPSTREAM


class TlsFailed(ConnectFailed):
    """No TLS connection to the endpoint: a certificate, a file of ours, or the handshake."""

    error_type = "tls_certificate_error"


class NoCommonProtocol(TlsFailed):
    """The endpoint speaks none of the protocols that were offered to it (ALPN, RFC 7301 §3.2)."""


class UpstreamReset(ProxyError):
    """The endpoint closed the connection before its answer was complete."""

    http_status, grpc_status, flag, error_type = 503, Grpc.UNAVAILABLE, "UC", "connection_terminated"
    fault = Fault.UPSTREAM


class UpstreamProtocolError(ProxyError):
    """The endpoint's answer is not HTTP, or ambiguous; nothing of it is passed on."""

    http_status, grpc_status, flag, error_type = 502, Grpc.UNAVAILABLE, "UPE", "http_protocol_error"
    fault = Fault.UPSTREAM


class PerTryTimeout(ProxyError):
    """One attempt took longer than ``timeouts.backendRequest``."""

    http_status, grpc_status, flag, error_type = 504, Grpc.DEADLINE_EXCEEDED, "UT", "http_response_timeout"
    fault = Fault.UPSTREAM


class ExchangeTimeout(ProxyError):
    """The exchange with all its attempts took longer than ``timeouts.request``."""

    http_status, grpc_status, flag, error_type = 504, Grpc.DEADLINE_EXCEEDED, "UT", "http_response_timeout"
    fault = Fault.UPSTREAM


def proxy_status(error: ProxyError) -> bytes:
    """The Proxy-Status field value (RFC 9209): error type, response flag and the message as quoted strings."""
    details = f"{error.flag} {error.message}"
    # RFC 8941 §3.3.3: a String holds printable ASCII, with " and \ escaped.
    safe = "".join(c if " " <= c <= "~" else "?" for c in details).replace("\\", "\\\\").replace('"', '\\"')
    return f'sidemesh; error={error.error_type}; details="{safe}"'.encode("ascii")
