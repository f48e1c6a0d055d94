"""The options of ``mesh sidecar`` and ``mesh run``: flags over environment over the YAML file over defaults."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mesh.cli.state import state_directory
from mesh.discovery.file_format import read_services
from mesh.model.errors import InvalidError, Violation
from mesh.model.gateway_api import read_documents
from mesh.model.name import DEFAULT_NAMESPACE, DEFAULT_SUFFIXES, Name
from mesh.model.validate import validate_table
from proxy.config import LIMIT_KEYS, Address, SidecarConfig
from proxy.http1.limits import ConnectionLimits
from proxy.tls import KeyPair

F = TypeVar("F", bound=Callable[..., Any])

PROTOCOLS = ("caller", "http1", "http2", "tcp", "detect")
PORT_PROTOCOLS = ("tcp", "detect")
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--service", help="The service beside this sidecar: a DNS label.  [required]"),
    click.option("--namespace", help="Namespace of the service and of names without one.  [default: default]"),
    click.option("--port", type=int, help="The program's port on 127.0.0.1. Left out for a program that only calls."),
    click.option("--version", "version", help="What is registered as Meta.version, the subset's name: v2."),
    click.option("--inbound", metavar="HOST:PORT", help="Where other sidecars come in.  [default: 127.0.0.1:15006]"),
    click.option("--outbound", metavar="HOST:PORT", help="Where the program calls out.  [default: 127.0.0.1:15001]"),
    click.option("--admin", metavar="HOST:PORT", help="Admin pages; keep it on loopback.  [default: 127.0.0.1:15000]"),
    click.option("--control", metavar="HOST:PORT", help="Control server: tables, and discovery."),
    click.option("--consul", metavar="URL", help="Consul agent, http://HOST:PORT; token from CONSUL_HTTP_TOKEN."),
    click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="YAML with these keys."),
    click.option("--upstream", multiple=True, metavar="NAME=PORT[/HOW]",
                 help="A local port of a service; repeatable. HOW is tcp, or detect."),
    click.option("--advertise", metavar="HOST[:PORT]", help="What is registered.  [default: the inbound address]"),
    click.option("--instance-id", help="Unique within the service.  [default: SERVICE-HOSTNAME-INBOUNDPORT]"),
    click.option("--check", metavar="tcp|PATH", help="How the program is checked each second.  [default: tcp]"),
    click.option("--protocol", type=click.Choice(PROTOCOLS), help="Spoken with the program.  [default: caller]"),
    click.option("--tls-cert", metavar="FILE", help="Shown to inbound clients that begin with TLS.  [default: none]"),
    click.option("--tls-key", metavar="FILE", help="The key of --tls-cert."),
    click.option("--tls-client-ca", metavar="FILE", help="Clients with TLS must show a certificate of this authority."),
    click.option("--egress", type=click.Choice(["deny", "allow"]), help="Names that are no service.  [default: deny]"),
    click.option("--egress-connect", metavar="PORTS", help="Ports that CONNECT (https) may go to.  [default: none]"),
    click.option("--workers", type=int, help="Processes that carry traffic.  [default: 1]"),
    click.option("--drain-s", type=float, help="Time to leave, and again for calls in flight, s.  [default: 30]"),
    click.option("--max-connections", type=int, help="Clients of one listener at a time.  [default: 20000]"),
    click.option("--grace-s", type=float, help="Stay of endpoints that vanish without a word, s.  [default: 30]"),
    click.option("--data", "data", metavar="DIR", help="Where the last table and endpoints are kept; 'none': nowhere.  "
                 "[default: $XDG_STATE_HOME/sidemesh/sidecar, else ~/.local/state/sidemesh/sidecar]"),
    click.option("--services", "services_file", metavar="FILE", help="Endpoints from a YAML file instead of a server."),
    click.option("--suffix", multiple=True, metavar=".DOMAIN", help="A further domain of service names; repeatable."),
    click.option("--trace-ratio", type=float, help="Share of new traces that is sampled, 0 to 1.  [default: 0.01]"),
    click.option("--trace-formats", metavar="LIST", help="Of tracecontext, b3, b3multi.  [default: tracecontext]"),
    click.option("--trace-tcp", type=click.Choice(["off", "on"]), help="A span per TCP connection.  [default: off]"),
    click.option("--access-log", type=click.Choice(["off", "sampled", "all"]), help="[default: off]"),
    click.option("--access-log-format", type=click.Choice(["json", "text"]), help="[default: json]"),
    click.option("--access-log-path", metavar="FILE", help="Where to; - is standard output.  [default: -]"),
    click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]"),
)  # fmt: skip

_FILE_ONLY = {"upstreams", "services", "routes", "limits", "tls-certificates"}
_KEYS = {
    "service", "namespace", "port", "version", "inbound", "outbound", "admin", "control", "consul", "advertise",
    "instance-id", "check", "protocol", "tls-cert", "tls-key", "tls-client-ca",
    "egress", "egress-connect", "workers", "drain-s", "grace-s", "max-connections", "data", "suffix",
    "trace-ratio", "trace-formats", "trace-tcp",
    "access-log", "access-log-format", "access-log-path", "log-level",
} | _FILE_ONLY  # fmt: skip


def sidecar_options(command: F) -> F:
    """Give a command all options of a sidecar."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_config(options: Mapping[str, Any]) -> SidecarConfig:
    """Make the configuration of what was given. Raises InvalidError with everything that is wrong."""
    wrong: list[Violation] = []
    document = _read_file(options.get("config"), wrong)
    given: dict[str, Any] = {key.replace("-", "_"): value for key, value in document.items()}
    given.update({key: value for key, value in options.items() if value not in (None, ())})

    def value(key: str, read: Callable[[Any], Any], default: Any) -> Any:  # noqa: ANN401 - each key has its own type
        if key not in given:
            return default
        try:
            return read(given[key])
        except InvalidError as error:
            wrong.extend(error.violations)
            return default
        except (ValueError, TypeError) as error:
            wrong.append(Violation(key.replace("_", "-"), str(error)))
            return default

    namespace = value("namespace", _text, DEFAULT_NAMESPACE)
    service = given.get("service")
    if not service:
        wrong.append(Violation("service", "is missing; give --service NAME, MESH_SERVICE or service: in the file"))
        service = "unnamed"
    defaults = SidecarConfig(Name(namespace, str(service)))
    inbound = value("inbound", _address, defaults.inbound)
    instance_id = value("instance_id", _text, "")
    # Files are named after the instance: one whose name is new at every start would find none, and leave its own.
    keeps = bool(instance_id or inbound.port) and ("control" in given or "consul" in given)
    # The flag --services names a file; in the file the key holds the endpoints themselves.
    services = value("services", _services, None)
    ports = value("upstream" if "upstream" in given else "upstreams", lambda _: _upstream_ports(given, namespace), {})
    config = SidecarConfig(
        service=Name(namespace, str(service)),
        port=value("port", _whole, None),
        version=value("version", _text, ""),
        inbound=inbound,
        outbound=value("outbound", _address, defaults.outbound),
        admin=value("admin", _address, defaults.admin),
        control=value("control", lambda text: Address.parse(_text(text), 15010), None),
        consul=value("consul", _consul_url, None),
        upstreams={name: port for name, (port, _) in ports.items()},
        tcp_upstreams=frozenset(name for name, (_, spoken) in ports.items() if spoken == "tcp"),
        detected_upstreams=frozenset(name for name, (_, spoken) in ports.items() if spoken == "detect"),
        advertise=value("advertise", lambda text: Address.parse(_text(text), 0), None),
        instance_id=instance_id or _own_id(str(service), inbound),
        check=value("check", _text, "tcp"),
        protocol=value("protocol", _text, "caller"),
        tls_cert=value("tls_cert", _path, None),
        tls_key=value("tls_key", _path, None),
        tls_client_ca=value("tls_client_ca", _path, None),
        tls_certificates=value("tls_certificates", _key_pairs, ()),
        egress=value("egress", _egress, default=False),
        egress_connect=value("egress_connect", _ports, ()),
        workers=value("workers", _whole, 1),
        drain_s=value("drain_s", _number, defaults.drain_s),
        grace_s=value("grace_s", _number, defaults.grace_s),
        max_connections=value("max_connections", _whole, defaults.max_connections),
        limits=value("limits", _limits, defaults.limits),
        data_dir=value("data", _directory, state_directory("sidecar") if keeps else None),
        suffixes=value("suffix", _suffixes, defaults.suffixes),
        trace_ratio=value("trace_ratio", _number, defaults.trace_ratio),
        trace_formats=value("trace_formats", _words, defaults.trace_formats),
        trace_tcp=value("trace_tcp", _switch, defaults.trace_tcp),
        access_log=value("access_log", _yaml_off, defaults.access_log),
        access_log_format=value("access_log_format", _text, defaults.access_log_format),
        access_log_path=value("access_log_path", _text, defaults.access_log_path),
        services=services,
        services_file=value("services_file", Path, None),
        routes=value("routes", _routes, ()),
        log_level=value("log_level", _text, defaults.log_level),
    )
    try:
        config.validate()
    except InvalidError as error:
        wrong.extend(v for v in error.violations if v.field not in {w.field for w in wrong})
    if wrong:
        raise InvalidError(wrong)
    return config


def _read_file(path: Path | None, wrong: list[Violation]) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml  # 1.6 MiB, which a sidecar without files can do without

    try:
        document = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        wrong.append(Violation("config", f"{path} cannot be read: {error.strerror}"))
        return {}
    except yaml.YAMLError as error:
        wrong.append(Violation("config", f"{path} is not YAML: {error}"))
        return {}
    if not isinstance(document, dict):
        wrong.append(Violation("config", f"{path} holds {type(document).__name__}, not a mapping of settings"))
        return {}
    known = ", ".join(sorted(_KEYS))
    wrong.extend(Violation(str(key), f"is no setting; known are {known}") for key in document if key not in _KEYS)
    return document


def _upstream_ports(given: Mapping[str, Any], namespace: str) -> dict[Name, tuple[int, str]]:
    """Of each service its local port, and what was said to be spoken there; "" where nothing was."""
    found: dict[Name, tuple[int, str]] = {}
    section = given.get("upstreams") or {}
    if not isinstance(section, Mapping):
        message = "upstreams is not a mapping of NAME: PORT"
        raise TypeError(message)
    pairs = [(str(name), str(port)) for name, port in section.items()]
    pairs += [tuple(item.partition("=")[::2]) for item in given.get("upstream") or ()]
    for name, text in pairs:
        port, slash, protocol = text.partition("/")
        if not port.isdigit() or int(port) > 65535 or (slash and protocol not in PORT_PROTOCOLS):
            message = f"{name}={text} is not NAME=PORT, NAME=PORT/tcp or NAME=PORT/detect"
            raise ValueError(message)
        found[Name.parse(name, namespace)] = int(port), protocol
    return found


def _own_id(service: str, inbound: Address) -> str:
    """An id for an instance whose inbound port is not known yet; "" leaves it to be made of the port."""
    return "" if inbound.port else f"{service}-{os.uname().nodename}-{os.getpid()}"


# Each of these reads one setting as a flag, a variable or YAML gives it, and raises ValueError saying what is accepted.


def _path(given: object) -> Path:
    return Path(_text(given))


def _key_pairs(given: object) -> tuple[KeyPair, ...]:
    form = "a list of {names: [HOST, ...], cert: FILE, key: FILE}"
    if not isinstance(given, list):
        raise TypeError(f"is not {form}")
    pairs = []
    for item in given:
        if (
            not isinstance(item, Mapping)
            or set(item) != {"names", "cert", "key"}
            or not isinstance(item["names"], list)
        ):
            raise TypeError(f"{item!r} is not {form[10:]}")
        pairs.append(KeyPair(_path(item["cert"]), _path(item["key"]), tuple(map(_text, item["names"]))))
    return tuple(pairs)


def _text(given: object) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float | Path):
        raise TypeError(f"{given!r} is not text")
    return str(given)


def _directory(given: object) -> Path | None:
    text = _text(given)
    return None if text == "none" else Path(text)


def _whole(given: object) -> int:
    if isinstance(given, bool) or not str(given).removeprefix("-").isdigit():
        raise ValueError(f"{given!r} is not a whole number")
    return int(str(given))


def _number(given: object) -> float:
    try:
        number = math.nan if isinstance(given, bool) else float(str(given))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{given!r} is not a number")
    return number


def _words(given: object) -> tuple[str, ...]:
    items = given.split(",") if isinstance(given, str) else given
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{given!r} is neither a list of words nor words with commas between them")
    return tuple(item.strip() for item in items)


def _address(given: object) -> Address:
    return Address.parse(_text(given))


def _consul_url(given: object) -> str:
    text = _text(given)
    return text if "://" in text else f"http://{text}"


def _egress(given: object) -> bool:
    if given not in ("allow", "deny"):
        raise ValueError(f"{given!r} is neither 'allow' nor 'deny'")
    return given == "allow"


def _ports(given: object) -> tuple[int, ...]:
    items = str(given).split(",") if isinstance(given, str | int) and not isinstance(given, bool) else given
    if not isinstance(items, list | tuple) or not all(str(item).strip().isdigit() for item in items):
        raise ValueError(f"{given!r} is neither a list of ports nor ports with commas between them")
    return tuple(int(str(item)) for item in items)


def _suffixes(given: object) -> tuple[str, ...]:
    """Those given, and Consul's own, under which services are known in any case."""
    wanted = (item if item.startswith(".") else f".{item}" for item in _words(given))
    return tuple(dict.fromkeys((*DEFAULT_SUFFIXES, *wanted)))


def _yaml_off(given: object) -> str:
    return "off" if given is False else _text(given)  # YAML reads a bare ``off`` as False


def _switch(given: object) -> bool:
    if given in ("on", "off"):
        return given == "on"
    if isinstance(given, bool):  # YAML reads ``on`` and ``off`` so
        return given
    raise ValueError(f"{given!r} is neither 'on' nor 'off'")


def _limits(given: object) -> ConnectionLimits:
    if not isinstance(given, Mapping):
        raise TypeError(f"{given!r} is not a mapping of {', '.join(LIMIT_KEYS)}")
    return SidecarConfig.limits_of(given)


def _services(given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{given!r} is not a mapping of services to endpoints; --services names a file of its own")
    read_services(given)  # raises InvalidError
    return given


def _routes(given: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(given, list):
        raise TypeError(f"{given!r} is not a list of HTTPRoute and ServicePolicy documents")
    try:
        validate_table(read_documents(given).values)
    except InvalidError as error:
        raise InvalidError(Violation(f"routes: {v.field}".rstrip(": "), v.message) for v in error.violations) from error
    return tuple(given)
