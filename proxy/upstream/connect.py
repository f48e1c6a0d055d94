"""Connections to endpoints: plain, or over TLS where the service's policy says so."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from mesh.http.outcome import ConnectFailed, NoCommonProtocol, TlsFailed
from proxy.callbacks import Callbacks
from proxy.tls import HANDSHAKE_S, HTTP2, NO_COMMON_PROTOCOL, TlsError, explain, laid_over

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane
    from proxy.upstream.endpoint import UpstreamEndpoint

logger = logging.getLogger(__name__)

_P = TypeVar("_P", bound=Callbacks)


async def connect(endpoint: UpstreamEndpoint, make: Callable[[], _P], protocols: tuple[str, ...]) -> _P:
    """A connection, its handshake done; ``protocols`` are offered by ALPN. Raises ConnectFailed, saying why."""
    timeout_s = endpoint.service.policy.connect_timeout_s
    reached: list[asyncio.Transport] = []
    limit = _TimeLimit(endpoint.service.plane, timeout_s)
    try:
        return await _connect(endpoint, make, protocols, reached)
    except asyncio.CancelledError as error:
        if not limit.has_cancelled_alone():
            raise
        if reached:
            message = f"no TLS with {endpoint} within {timeout_s:g} s (does it speak TLS on that port?)"
            raise TlsFailed(message, not_sent=True) from error
        message = f"no connection to {endpoint} within {timeout_s:g} s"
        raise ConnectFailed(message, not_sent=True) from error
    except (ssl.SSLError, TlsError) as error:
        why = str(error) if isinstance(error, TlsError) else explain(error)
        kind = NoCommonProtocol if NO_COMMON_PROTOCOL in str(error) else TlsFailed
        raise kind(f"no TLS with {endpoint}: {why}", not_sent=True) from error
    except OSError as error:
        message = f"cannot connect to {endpoint}: {error.strerror or error}"
        raise ConnectFailed(message, not_sent=True) from error
    except Exception as error:  # whatever it is, those who wait must hear of it: an address that is no name, for one
        logger.exception("connecting to %s", endpoint)
        message = f"cannot connect to {endpoint}: {type(error).__name__}: {error}"
        raise ConnectFailed(message, not_sent=True) from error
    finally:
        limit.stop()


class _TimeLimit:
    """Cancels the task that made it after so long: what ``asyncio.timeout`` does, without a timer for each."""

    __slots__ = ("_deadlines", "_has_cancelled", "_task", "deadline_s")

    def __init__(self, plane: DataPlane, seconds: float) -> None:
        """It runs from now on."""
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._deadlines = plane.deadlines
        self._has_cancelled = False
        now = plane.clock()
        self.deadline_s = now + seconds
        self._deadlines.add(self, now)

    def on_deadline(self) -> None:
        """See Timed."""
        self._has_cancelled = True
        self._task.cancel()

    def has_cancelled_alone(self) -> bool:
        """Tell, of a task that was cancelled, whether nobody else did it."""
        return self._has_cancelled and self._task.uncancel() == 0

    def stop(self) -> None:
        """What was limited is over."""
        self._deadlines.discard(self)


async def _connect(
    endpoint: UpstreamEndpoint, make: Callable[[], _P], protocols: tuple[str, ...], reached: list[asyncio.Transport]
) -> _P:
    """``reached`` takes the connection over which TLS shall begin."""
    loop, model, tls = asyncio.get_running_loop(), endpoint.model, endpoint.service.tls
    if tls is None:
        made = await loop.create_connection(cast("Callable[[], asyncio.Protocol]", make), model.address, model.port)
        return cast("_P", made[1])
    transport, _ = await loop.create_connection(asyncio.Protocol, model.address, model.port)
    reached.append(transport)
    try:
        connection = make()
        with tls.context_for(endpoint.address, protocols) as context:
            secured = await loop.start_tls(
                transport,
                cast("asyncio.Protocol", connection),
                context,
                server_hostname=tls.settings.server_name,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        assert secured is not None  # noqa: S101 - None is for transports that were closed, which raises here
    except BaseException:
        transport.abort()
        raise
    laid_over(secured, transport)
    connection.connection_made(secured)
    return connection


def has_declined_http2(connection: asyncio.BaseTransport) -> bool:
    """Tell whether it is one over TLS on which ALPN (RFC 7301) did not choose HTTP/2, or was not known."""
    secured = connection.get_extra_info("ssl_object")
    return secured is not None and secured.selected_alpn_protocol() != HTTP2
