"""TLS at the edges of a sidecar: contexts made of files, made anew when the files change, and errors in words.

This is the one place that knows certificates: what feeds it are files now, and may be the control server later. A
file that has become bad leaves what was loaded before, and is told; connections that are there go on with what they
began with.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

logger = logging.getLogger(__name__)

HANDSHAKE_S = 10.0  # as a whole head may take: a handshake is two round trips
HTTP2, HTTP1 = "h2", "http/1.1"  # RFC 9113 §3.2, RFC 7301 §6
# RFC 9325 §4.2: with TLS 1.2 only what has forward secrecy and an AEAD; TLS 1.3 has no other.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
MAX_SESSIONS = 1024


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain with its key, PEM. ``names``: for whom (SNI); ``*.a.example`` is every host there."""

    certificate: Path
    key: Path
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """``pairs``: the first is shown to whoever names nobody, or somebody else. ``client_ca``: demand a certificate."""

    pairs: tuple[KeyPair, ...]
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How an endpoint is verified. ``ca`` None: by the authorities that the system trusts."""

    server_name: str
    ca: Path | None = None
    pair: KeyPair | None = None


class TlsError(Exception):
    """Files that no context can be made of; says which, and why."""


class ServerTls:
    """The contexts that clients are met with."""

    def __init__(self, settings: ServerSettings, protocols: Sequence[str] = (HTTP2, HTTP1)) -> None:
        """Load the files. Raises TlsError."""
        self._settings = settings
        self._protocols = list(protocols)
        files = [path for pair in settings.pairs for path in (pair.certificate, pair.key)]
        self._files = _Files([*files, *([settings.client_ca] if settings.client_ca else [])])
        self.context, self._by_name = self._load()

    def refresh(self) -> None:
        """Load again what has changed; new connections are met with it."""
        if self._files.have_changed():
            try:
                self.context, self._by_name = self._load()
            except TlsError as error:
                logger.error("the certificates from before stay: %s", error)  # noqa: TRY400 - the message says it all
            else:
                logger.info("certificates loaded anew")

    def _load(self) -> tuple[ssl.SSLContext, dict[str, ssl.SSLContext]]:
        by_name: dict[str, ssl.SSLContext] = {}
        contexts = []
        for pair in self._settings.pairs:
            context = _context(ssl.PROTOCOL_TLS_SERVER, self._protocols)
            context.sslobject_class = _ServerConnection
            _load_pair(context, pair)
            if self._settings.client_ca is not None:
                _load_ca(context, self._settings.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            contexts.append(context)
            by_name |= dict.fromkeys((name.lower() for name in pair.names), context)
        if by_name:
            contexts[0].sni_callback = self._choose
        return contexts[0], by_name

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """RFC 6066 §3: the certificate for the name that the client asked for."""
        if name is not None:
            lower = name.lower()
            found = self._by_name.get(lower) or self._by_name.get("*." + lower.partition(".")[2])
            if found is not None:
                connection.context = found


class ClientTls:
    """How the endpoints of one service are spoken to, and the sessions that make the next handshake a short one."""

    def __init__(self, settings: ClientSettings) -> None:
        """Loads nothing yet: files that are not there must not keep a table from being taken."""
        self.settings = settings
        self._context: _ClientContext | None = None
        self._sessions: OrderedDict[str, ssl.SSLSession] = OrderedDict()
        pair = settings.pair
        self._files = _Files([*([settings.ca] if settings.ca else []), *([pair.certificate, pair.key] if pair else [])])

    def refresh(self) -> None:
        """Load again what has changed; new connections are made with it."""
        if self._context is None or not self._files.have_changed():
            return
        try:
            context = self._load()
        except TlsError as error:
            name = self.settings.server_name
            logger.error("TLS to %s: the certificates from before stay: %s", name, error)  # noqa: TRY400 - as above
        else:
            self._context = context
            self._sessions.clear()
            logger.info("TLS to %s: certificates loaded anew", self.settings.server_name)

    @contextmanager
    def context_for(self, address: str, protocols: tuple[str, ...]) -> Iterator[ssl.SSLContext]:
        """The context for a handshake with that endpoint, which begins and ends within. Raises TlsError.

        The connection's session is kept for the next one as soon as the endpoint has sent something.
        """
        context = self._context
        if context is None:
            context = self._context = self._load()
        handshake = _Handshake(self, address, protocols, self._sessions.get(address))
        context.upcoming.append(handshake)
        try:
            yield context
        finally:
            if handshake in context.upcoming:  # given up before it began: the next must not take it for its own
                context.upcoming.remove(handshake)

    def _load(self) -> _ClientContext:
        context = _ClientContext(ssl.PROTOCOL_TLS_CLIENT)
        _harden(context)
        if self.settings.ca is not None:
            _load_ca(context, self.settings.ca)
        else:
            context.load_default_certs()
        if self.settings.pair is not None:
            _load_pair(context, self.settings.pair)
        return context

    def keep(self, address: str, connection: ssl.SSLObject) -> None:
        """Keep a connection's session for the next one, unless it was made with files that have changed since."""
        session = connection.session
        if session is not None and connection.context is self._context:
            self._sessions[address] = session
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Handshake:
    """With whom, what is offered, and the session that may make it a short one."""

    tls: ClientTls
    address: str
    protocols: tuple[str, ...]
    session: ssl.SSLSession | None


class _ClientConnection(ssl.SSLObject):
    """Has its session kept when the first bytes come, whatever they are and whoever reads them, and can be half closed.

    Before, a session of TLS 1.3 is of no use: tickets come behind the handshake (RFC 8446 §4.6.1). Later there is no
    moment that all have: TCP ends without an answer, and `connection: close` with it. Done here, it costs a connection
    over TLS one test for each read, and a plain one nothing.
    """

    handshake: _Handshake | None = None
    """Until then."""
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    """Between it and the connection below, which the loop moves."""
    below: asyncio.WriteTransport | None = None
    _ends = False
    """Once all that has come is read, it sends no more."""

    def read(self, len: int = 1024, buffer: Any = None) -> bytes:  # noqa: A002, ANN401 - as the base class
        try:
            data = super().read(len, buffer)
        except ssl.SSLZeroReturnError:  # instead of an empty read, once we have sent close_notify ourselves
            return b"" if buffer is None else cast("bytes", 0)  # how many, where there is a buffer
        except ssl.SSLWantReadError:
            if self._ends:  # what was left to read was no data, but a ticket or a new key
                self.end()
            raise
        if self.handshake is not None and data:
            handshake, self.handshake = self.handshake, None
            handshake.tls.keep(handshake.address, self)
        if self._ends:
            self.end()
        return data

    def end(self) -> None:
        """Send close_notify, and read on. What has come and was not read (its reader is slow) has to be read first.

        Python asks OpenSSL at once for the endpoint's own close_notify, and drops the data that it finds instead.
        """
        self._ends = bool(self.incoming.pending or self.pending())
        if self._ends:
            return
        with suppress(ssl.SSLError):  # that the endpoint's own has not come yet
            self.unwrap()
        if self.below is not None and not self.below.is_closing():
            self.below.write(self.outgoing.read())


class _ServerConnection(ssl.SSLObject):
    """May be half closed by its client: whoever asks for that hears of close_notify, and the loop does not.

    It would end the other direction at once (uvloop), of which RFC 8446 §6.1 says nothing.
    """

    on_end: Callable[[], object] | None = None

    def read(self, len: int = 1024, buffer: Any = None) -> bytes:  # noqa: A002, ANN401 - as the base class
        data = super().read(len, buffer)
        if not data and self.on_end is not None:
            asyncio.get_running_loop().call_soon(self._tell_end)  # behind what this read has brought
            raise ssl.SSLWantReadError
        return data

    def _tell_end(self) -> None:
        if self.on_end is not None:  # who has it now: what has just come may have told what is spoken
            self.on_end()


class _ClientContext(ssl.SSLContext):
    """Gives each connection the handshake that was put in line for it: uvloop has no other way to pass a session."""

    sslobject_class = _ClientConnection

    def __new__(cls, protocol: int) -> Self:
        context = super().__new__(cls, protocol)
        context.upcoming = deque()
        return context

    upcoming: deque[_Handshake]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *args: Any,  # noqa: ANN401 - as the base class
        **more: Any,  # noqa: ANN401
    ) -> ssl.SSLObject:
        handshake = self.upcoming.popleft()
        self.set_alpn_protocols(list(handshake.protocols))  # of the connections made from now on
        made = super().wrap_bio(incoming, outgoing, *args, **{**more, "session": handshake.session})
        connection = cast("_ClientConnection", made)
        connection.handshake, connection.incoming, connection.outgoing = handshake, incoming, outgoing
        return connection


def laid_over(secured: asyncio.BaseTransport, below: asyncio.WriteTransport) -> None:
    """Tell a connection to an endpoint, whose handshake is done, which one it is laid over: see ``half_close``."""
    secured.get_extra_info("ssl_object").below = below


def hear_end(secured: asyncio.BaseTransport, on_end: Callable[[], object]) -> None:
    """Have ``on_end`` called when a client sends no more (close_notify), and go on sending to it.

    Where the connection is in clear text, its end is heard of otherwise.
    """
    connection = secured.get_extra_info("ssl_object")
    if connection is not None:
        connection.on_end = on_end


def half_close(secured: asyncio.BaseTransport) -> None:
    """Send no more to an endpoint, and read on (close_notify, RFC 8446 §6.1): neither Python nor uvloop offers it."""
    connection: _ClientConnection = secured.get_extra_info("ssl_object")
    if connection.below is not None and not connection.below.is_closing():
        connection.end()


class _Files:
    """Tells whether any of them is another one than when it was asked last."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen = self._look()

    def have_changed(self) -> bool:
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_signature(path) for path in self._paths]


def explain(error: BaseException) -> str:
    """Which check failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold: {error.verify_message.rstrip('.')} (code {error.verify_code})"
    if isinstance(error, ssl.SSLError):
        said = _REASON.search(str(error))
        reason = (error.reason or (said[1] if said else str(error))).replace("_", " ").lower()
        return f"the TLS handshake failed: {reason}{_HINTS.get(reason, '')}"
    return f"the TLS handshake failed: {str(error) or type(error).__name__}"


NO_COMMON_PROTOCOL = "tlsv1 alert no application protocol"
"""What the text of an SSLError says where ALPN found none; its ``reason`` is None for want of a name."""

_REASON = re.compile(r"\[SSL[^\]]*\] (.*?) \(_?ssl", re.IGNORECASE)
_HINTS = {
    "wrong version number": " (does it speak TLS on that port?)",
    "record layer failure": " (does it speak TLS on that port?)",
    "tlsv13 alert certificate required": " (it wants a client certificate)",
    "tlsv1 alert unknown ca": " (it does not trust our client certificate's authority)",
    "sslv3 alert handshake failure": " (no TLS version or cipher in common, or it wants a client certificate)",
    NO_COMMON_PROTOCOL: " (no protocol in common: see appProtocol)",
}


def _context(protocol: int, protocols: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    _harden(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def _harden(context: ssl.SSLContext) -> None:
    """RFC 9325: TLS 1.2 at least, no compression, no renegotiation."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    _loading(pair.certificate, lambda: context.load_cert_chain(pair.certificate, pair.key, _no_password), pair.key)


def _load_ca(context: ssl.SSLContext, path: Path) -> None:
    _loading(path, lambda: context.load_verify_locations(path))


def _loading(path: Path, load: Callable[[], None], key: Path | None = None) -> None:
    named = f"{path} with {key}" if key is not None else str(path)
    try:
        load()
    except FileNotFoundError as error:
        missing = next((each for each in (path, key) if each is not None and not each.exists()), path)
        message = f"{missing} is not there"
        raise TlsError(message) from error
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        message = f"{named} cannot be loaded: {str(reason).replace('_', ' ').lower()}"
        raise TlsError(message) from error


def _no_password() -> str:
    message = "the key is encrypted; nobody is there to type its password"
    raise ValueError(message)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
