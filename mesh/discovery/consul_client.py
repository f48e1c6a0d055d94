"""Consul's HTTP API as discovery needs it: requests, error translation and the reading of answers.

Two sessions. Short requests share a few kept-alive connections. A blocking query gets a connection of its own that
is never used again: aiohttp silently repeats a GET when a kept-alive connection turns out dead, and so would send
an index to a restarted agent for which it means nothing (``consul_watch.py``).
"""

from __future__ import annotations

import json
import ssl
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, assert_never
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from mesh.discovery.base import SourceError, SourceRefused
from mesh.discovery.consul_watch import Answer, Mode, Query
from mesh.model.name import DEFAULT_NAMESPACE, Name
from mesh.model.service import Endpoint, Health

DEFAULT_ADDRESS: Final = "127.0.0.1:8500"
MAX_BLOCKING: Final = 150  # of the 200 connections that an agent allows per client address
SHORT_CONNECTIONS: Final = 16
SHORT_TIMEOUT_S: Final = 5.0
NAMESPACE_KEY: Final = "namespace"  # in Service.Meta; absent means the default namespace


@dataclass(frozen=True, slots=True)
class ConsulConfig:
    """Where the agent is and how to speak to it. ``token`` is sent as X-Consul-Token; empty means none."""

    url: str = f"http://{DEFAULT_ADDRESS}"
    token: str = field(default="", repr=False)
    datacenter: str = ""
    """Watch this datacenter instead of the agent's own. Registrations always go to the agent's own."""
    ca_file: str = ""
    """PEM certificates to trust for https; empty means the system's."""
    max_blocking: int = MAX_BLOCKING
    """Blocking queries at one time; services beyond it are polled every 2 s from the agent's cache. Several sidecars
    behind one client address share the agent's limit of 200."""

    @classmethod
    def make(
        cls,
        environ: Mapping[str, str],
        address: str | None = None,
        token: str | None = None,
        datacenter: str = "",
    ) -> ConsulConfig:
        """Arguments first, then Consul's own variables: CONSUL_HTTP_ADDR, _TOKEN, _SSL and CONSUL_CACERT.

        ``address`` is HOST:PORT or an http(s) URL. Raises ValueError, naming the accepted form.
        """
        text = address or environ.get("CONSUL_HTTP_ADDR") or DEFAULT_ADDRESS
        uses_tls = environ.get("CONSUL_HTTP_SSL", "").lower() in ("1", "true")
        url = text if "://" in text else f"{'https' if uses_tls else 'http'}://{text}"
        try:
            parts = urlsplit(url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets that do not match, or a port that is no number up to 65535
            is_good = False
        if not is_good:
            raise ValueError(f"Consul address {text!r} is not HOST:PORT, http://HOST:PORT or https://HOST:PORT")
        return cls(
            url.rstrip("/"),
            environ.get("CONSUL_HTTP_TOKEN", "") if token is None else token,
            datacenter,
            environ.get("CONSUL_CACERT", ""),
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of any status; ``body`` whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body for an error message, shortened."""
        return self.body[:300].decode("utf-8", "replace").strip()


class ConsulClient:
    """Speaks to one agent. Every failure comes out as SourceError, a refusal as SourceRefused."""

    def __init__(self, config: ConsulConfig) -> None:
        """Opens nothing: ``start`` does, in the loop."""
        self.config = config
        self._short: aiohttp.ClientSession | None = None
        self._blocking: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Make the sessions. Raises SourceError for an unreadable ``ca_file``."""
        if self._short is not None:
            return
        tls: ssl.SSLContext | bool = True
        if self.config.url.startswith("https") and self.config.ca_file:
            try:
                tls = ssl.create_default_context(cafile=self.config.ca_file)
            except OSError as error:
                raise SourceError(f"CONSUL_CACERT {self.config.ca_file!r}: {error}") from error
        headers = {"X-Consul-Token": self.config.token} if self.config.token else {}
        # trust_env off is aiohttp's default, said here because it matters: HTTP_PROXY is the sidecar itself.
        self._short = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=SHORT_CONNECTIONS, ssl=tls), headers=headers, trust_env=False
        )
        self._blocking = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=tls), headers=headers, trust_env=False
        )

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._short, self._blocking):
            if session is not None:
                await session.close()

    async def health(self, service: Name, query: Query) -> Answer:
        """All instances of ``service`` in its namespace. Not ``?passing``: gone and unhealthy must be told apart."""
        # stale: any server may answer. Usually behind by milliseconds, and it goes on when the leader is lost.
        path = f"/v1/health/service/{quote(service.name, safe='')}?stale"
        session = self._short
        match query.mode:
            case Mode.NOW:
                pass
            case Mode.BLOCK:
                path += f"&index={query.index}&wait={round(query.wait_s * 1000)}ms"
                session = self._blocking
            case Mode.CACHED:
                path += "&cached"
            case _:
                assert_never(query.mode)
        if self.config.datacenter:
            path += f"&dc={quote(self.config.datacenter, safe='')}"
        reply = check(await self._send(session, "GET", path, None, query.timeout_s))
        answer = read_health(service, reply)
        if not answer.endpoints and reply.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
            raise SourceRefused(
                f"Consul hides the instances of {service} from this token: it needs service:read and node:read"
            )
        return answer

    async def call(self, method: str, path: str, body: object = None, timeout_s: float = SHORT_TIMEOUT_S) -> Reply:
        """A short request; any status comes back as it is. ``path`` is encoded already."""
        return await self._send(self._short, method, path, body, timeout_s)

    async def _send(
        self, session: aiohttp.ClientSession | None, method: str, path: str, body: object, timeout_s: float
    ) -> Reply:
        if session is None:
            raise RuntimeError("the Consul source was not started")
        url = URL(self.config.url + path, encoded=True)
        try:
            async with session.request(
                method,
                url,
                data=None if body is None else json.dumps(body),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return Reply(response.status, response.headers, await response.read())
        except TimeoutError as error:
            raise SourceError(f"Consul at {self.config.url} did not answer within {timeout_s:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SourceError(
                f"Consul at {self.config.url} cannot be asked: {str(error) or type(error).__name__}"
            ) from error


def check(reply: Reply) -> Reply:
    """The reply if it is a 200. Raises SourceRefused for what only a person can mend, else SourceError."""
    if reply.status == 200:
        return reply
    if reply.status in (401, 403):
        raise SourceRefused(
            f"Consul refuses the token ({reply.status} {reply.text}); set CONSUL_HTTP_TOKEN or its policy"
        )
    message = f"Consul answered {reply.status} {reply.text}"
    # 429: its rate limit, since 1.15. Other 4xx say that the request is wrong.
    if 400 <= reply.status < 500 and reply.status != 429:
        raise SourceRefused(message)
    raise SourceError(message)


def read_health(service: Name, reply: Reply) -> Answer:
    """The answer of /v1/health/service. Raises SourceError where it is not one."""
    try:
        entries = json.loads(reply.body)
        endpoints = read_entries(service, entries)
        index = int(reply.headers.get("X-Consul-Index", "0"))  # 64 bits: a Python int holds it
        age_s = float(reply.headers.get("Age", "0"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SourceError(f"Consul's answer about {service} is not understood: {error!r}") from error
    return Answer(max(index, 0), endpoints, reply.headers.get("X-Consul-KnownLeader", "true") != "false", age_s)


def read_entries(service: Name, entries: list[dict[str, Any]]) -> tuple[Endpoint, ...]:
    """The instances of ``service`` among ``entries``, in order of id; those without a port are no endpoints.

    Consul's service ids are unique per node only: those listed more than once get ``id@node``.
    """
    mine = [entry for entry in entries if _namespace(entry) == service.namespace and entry["Service"]["Port"]]
    counts = Counter(entry["Service"]["ID"] for entry in mine)
    endpoints = []
    for entry in mine:
        raw = entry["Service"]
        id_ = str(raw["ID"])
        endpoints.append(
            Endpoint(
                id_ if counts[id_] == 1 else f"{id_}@{entry['Node']['Node']}",
                str(raw["Address"] or entry["Node"]["Address"]),
                int(raw["Port"]),
                {str(key): str(value) for key, value in (raw["Meta"] or {}).items()},
                tuple(raw["Tags"] or ()),
                read_checks(id_, entry["Checks"] or []),
            )
        )
    return tuple(sorted(endpoints, key=lambda endpoint: endpoint.id))


def read_checks(service_id: str, checks: list[dict[str, Any]]) -> Health:
    """The worst of the checks. Maintenance mode is a critical check of a reserved id: it announces a leaving."""
    ids = {str(each["CheckID"]) for each in checks}
    if "_node_maintenance" in ids or f"_service_maintenance:{service_id}" in ids:
        return Health.LEAVING
    states = {str(each["Status"]) for each in checks}
    if states <= {"passing"}:
        return Health.PASSING
    return Health.WARNING if states <= {"passing", "warning"} else Health.CRITICAL


def _namespace(entry: dict[str, Any]) -> str:
    meta = entry["Service"]["Meta"] or {}
    return str(meta.get(NAMESPACE_KEY) or DEFAULT_NAMESPACE)
