"""Which shell a client's connection gets: by its listener, and by the first byte where TLS may begin with it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from proxy.callbacks import Callbacks, set_callbacks
from proxy.detect import DetectingDownstream
from proxy.file_limit import FILES_PER_LISTENER
from proxy.http1.downstream import Http1Downstream
from proxy.http2.downstream import Http2Downstream
from proxy.tcp import TcpDownstream
from proxy.tls import HANDSHAKE_S, HTTP2, explain

if TYPE_CHECKING:
    from proxy.listener import Listener

logger = logging.getLogger(__name__)

CLIENT_HELLO = b"\x16"  # the type of a handshake record (RFC 8446 §5.1): no request of HTTP begins so
BACKLOG = 1024
ACCEPTED_AT_ONCE = 64
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
PAUSE_S = 0.1  # where there is nothing to accept with: asyncio waits a second


class Closable(Protocol):
    """A server that listens."""

    def close(self) -> None:
        """Accept no more."""


async def open_server(listener: Listener, sock: socket.socket, *, is_shared: bool = False) -> Closable:
    """Accept connections for ``listener`` from a bound socket. ``is_shared``: other processes accept from it, too."""
    listener.port = sock.getsockname()[1]
    if listener.tls is not None:
        return PeekingServer(listener, sock)
    server = ManyHandedServer()
    for _ in range(0 if is_shared else FILES_PER_LISTENER - 1):  # who takes many would leave the others idle
        await server.take(listener, sock.dup())
    await server.take(listener, sock)
    return server


def protocol_for(listener: Listener) -> Callbacks:
    """For a connection that is made now. HTTP/1.1 and HTTP/2 are told apart by what comes: see ``http1/downstream``."""
    if listener.takes_connections:
        return TcpDownstream(listener)
    return DetectingDownstream(listener) if listener.peeks else Http1Downstream(listener)


class ManyHandedServer:
    """Accepts from one socket by several descriptors, since the loop (libuv) accepts once a turn from each.

    With one of them each new connection has a turn of its own, whose cost nothing shares, and whoever is sent to falls
    asleep meanwhile: measured, a TCP connection through a sidecar then costs 1.6 times the CPU.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._servers: list[asyncio.Server] = []

    async def take(self, listener: Listener, sock: socket.socket) -> None:
        """Accept from ``sock`` as well."""
        factory = cast("Callable[[], asyncio.Protocol]", partial(protocol_for, listener))
        self._servers.append(await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=BACKLOG))

    def close(self) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close()


class PeekingServer:
    """Looks at each connection's first byte, without taking it, before anybody reads: TLS or plain text.

    Where the server speaks first and in clear text nothing would ever come: where connections are taken for what they
    are, or told by their first bytes, a client's silence is taken for that.
    """

    def __init__(self, listener: Listener, sock: socket.socket) -> None:
        """Begin to accept."""
        self._listener = listener
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        self._shaking_hands = 0
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more; connections that have said nothing are closed."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for connection in tuple(self._silent):
            self._give_up(connection)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                logger.error("cannot accept a connection: %s", error)  # noqa: TRY400 - the message says it all
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(PAUSE_S, self._resume)
                return
            connection.setblocking(False)
            self._peek_at(connection)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _peek_at(self, connection: socket.socket) -> None:
        under_way = len(self._silent) + self._shaking_hands + len(self._listener.connections)
        if under_way >= self._listener.max_connections:
            self._listener.refused_connections += 1
            connection.close()
            return
        limits, peeks = self._listener.limits, self._may_be_silent
        timer = self._loop.call_later(
            limits.peek_s if peeks else limits.first_byte_s, self._fell_silent if peeks else self._give_up, connection
        )
        self._silent[connection] = timer
        self._loop.add_reader(connection.fileno(), self._look, connection)

    @property
    def _may_be_silent(self) -> bool:
        """A client that says nothing may be waiting for its server to speak."""
        return self._listener.peeks or self._listener.takes_connections

    def _look(self, connection: socket.socket) -> None:
        try:
            first = connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._give_up(connection)
            return
        if not first and not self._may_be_silent:
            self._give_up(connection)
            return
        kind = TlsAccepted if first == CLIENT_HELLO else protocol_for
        self._start_hand_over(connection, partial(kind, self._listener), is_tls=kind is TlsAccepted)

    def _fell_silent(self, connection: socket.socket) -> None:
        """A client waits for its server to speak."""
        self._start_hand_over(connection, partial(TcpDownstream, self._listener), is_tls=False)

    def _start_hand_over(self, connection: socket.socket, factory: Callable[[], Callbacks], *, is_tls: bool) -> None:
        self._forget(connection)
        self._listener.plane.tasks.start(self._hand_over(connection, factory, is_tls=is_tls), "accept")

    async def _hand_over(self, connection: socket.socket, factory: Callable[[], Callbacks], *, is_tls: bool) -> None:
        tls = self._listener.tls
        self._shaking_hands += 1
        try:
            await self._loop.connect_accepted_socket(
                cast("Callable[[], asyncio.BaseProtocol]", factory),
                connection,
                ssl=tls.context if is_tls and tls is not None else None,
                ssl_handshake_timeout=HANDSHAKE_S if is_tls else None,
            )
        except OSError as error:
            self._listener.failed_handshakes += 1
            logger.info("%s: a client was turned away: %s", self._listener.name, explain(error))
            connection.close()
        finally:
            self._shaking_hands -= 1

    def _give_up(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _forget(self, connection: socket.socket) -> None:
        timer = self._silent.pop(connection, None)
        if timer is not None:
            timer.cancel()
            self._loop.remove_reader(connection.fileno())


class TlsAccepted(asyncio.Protocol):
    """A client whose handshake is done: what was agreed on (ALPN, RFC 7301) says who goes on."""

    def __init__(self, listener: Listener) -> None:
        """``listener`` has the certificates."""
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand the connection over, before its first byte."""
        listener, given = self._listener, cast("asyncio.Transport", transport)
        chosen = given.get_extra_info("ssl_object").selected_alpn_protocol()
        if listener.takes_connections:
            protocol: Callbacks = TcpDownstream(listener)
        elif chosen == HTTP2:
            address = given.get_extra_info("peername") or ("", 0)
            protocol = http2 = Http2Downstream(listener, address[0], address[1])
            if not listener.admit(http2):
                given.abort()
                return
        elif chosen is None and listener.peeks:
            protocol = DetectingDownstream(listener)
        else:
            protocol = Http1Downstream(listener)
        set_callbacks(given, protocol)
        protocol.connection_made(given)
