"""The standard ``OTEL_*`` variables, as far as a sidecar has use for them.

Source: OpenTelemetry specification, "SDK environment variables" and "OTLP exporter". What is set there wins over the
sidecar's own settings; what is not set leaves them alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from mesh.model.errors import InvalidError, Violation

_PROTOCOLS = ("http/protobuf", "grpc")
_SAMPLERS = {
    "always_on": 1.0,
    "always_off": 0.0,
    "parentbased_always_on": 1.0,
    "parentbased_always_off": 0.0,
}
_RATIO_SAMPLERS = ("traceidratio", "parentbased_traceidratio")
_FORMATS = ("tracecontext", "b3", "b3multi")


@dataclass(frozen=True, slots=True)
class OtelSettings:
    """Where spans go and how. ``endpoint`` empty: nowhere, and none is recorded. Times in seconds."""

    endpoint: str = ""
    """The full URL for HTTP (``…/v1/traces``), ``host:port`` for gRPC."""
    protocol: str = "http/protobuf"
    is_secure: bool = False
    """TLS; for HTTP the URL says it too."""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    is_gzipped: bool = False
    max_queue: int = 2048
    max_batch: int = 512
    delay_s: float = 5.0
    ratio: float | None = None
    """From OTEL_TRACES_SAMPLER; None leaves it to the sidecar's own setting."""
    follows_parent: bool = True
    """False for the samplers that decide on their own, whatever the caller decided."""
    formats: tuple[str, ...] | None = None
    """From OTEL_PROPAGATORS; None leaves it to the sidecar's own setting; () is no propagation at all."""

    def ssl_context(self) -> ssl.SSLContext:
        """The TLS the settings ask for. Raises OSError where a file cannot be read."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file or None)
        return context


def read_otel(environ: Mapping[str, str]) -> OtelSettings:
    """Read them. Raises InvalidError with every variable that is wrong."""
    wrong: list[Violation] = []

    def signal(name: str, default: str = "") -> str:
        return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or default

    def number(name: str, default: float, text: str | None = None) -> float:
        text = environ.get(name, "") if text is None else text
        if not text:
            return default
        try:
            parsed = float(text)
        except ValueError:
            parsed = -1.0
        if not 0 <= parsed < float("inf"):
            wrong.append(Violation(name, f"{text!r} is not a number of 0 or more"))
            return default
        return parsed

    protocol = signal("PROTOCOL", "http/protobuf")
    if protocol not in _PROTOCOLS:
        wrong.append(Violation("OTEL_EXPORTER_OTLP_PROTOCOL", f"{protocol!r} is not one of {', '.join(_PROTOCOLS)}"))
    compression = signal("COMPRESSION", "none")
    if compression not in {"none", "gzip"}:
        wrong.append(Violation("OTEL_EXPORTER_OTLP_COMPRESSION", f"{compression!r} is not one of none, gzip"))
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    endpoint, is_secure = ("", False) if is_off else _endpoint(environ, protocol, signal("INSECURE"), wrong)
    max_queue = int(number("OTEL_BSP_MAX_QUEUE_SIZE", 2048))
    settings = OtelSettings(
        endpoint=endpoint,
        protocol=protocol,
        is_secure=is_secure,
        ca_file=signal("CERTIFICATE"),
        certificate_file=signal("CLIENT_CERTIFICATE"),
        key_file=signal("CLIENT_KEY"),
        headers=_headers(signal("HEADERS"), wrong),
        timeout_s=number("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000, signal("TIMEOUT")) / 1000.0,
        is_gzipped=compression == "gzip",
        max_queue=max_queue,
        max_batch=max(1, min(int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)), max_queue)),
        delay_s=number("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000.0,
        ratio=_ratio(environ, wrong),
        follows_parent=_follows_parent(environ.get("OTEL_TRACES_SAMPLER", "")),
        formats=_formats(environ.get("OTEL_PROPAGATORS", ""), wrong),
    )
    if wrong:
        raise InvalidError(wrong)
    return settings


def _endpoint(environ: Mapping[str, str], protocol: str, insecure: str, wrong: list[Violation]) -> tuple[str, bool]:
    """Where to, and whether by TLS."""
    own = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not own and not base and environ.get("OTEL_TRACES_EXPORTER") == "otlp":
        base = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    given = own or base
    variable = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
    if not given:
        return "", False
    if protocol == "grpc":
        if "://" not in given:
            return given, insecure.lower() != "true"  # as the SDK's gRPC exporter takes an address without a scheme
        url = urlsplit(given)
        if url.scheme not in {"http", "https"} or not url.netloc:
            wrong.append(Violation(variable, f"{given!r} is neither HOST:PORT nor a URL (http, https)"))
        return url.netloc, url.scheme == "https"
    url = urlsplit(given)
    if url.scheme not in {"http", "https"} or not url.netloc:
        wrong.append(Violation(variable, f"{given!r} is not a URL: http://HOST:PORT or https://HOST:PORT"))
    # The specification: the general one is a base URL, the one for traces is taken as it is.
    return own or f"{base.rstrip('/')}/v1/traces", url.scheme == "https"


def _headers(text: str, wrong: list[Violation]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = item.partition("=")
        decoded = unquote(value.strip())
        if not equals or not key.strip() or not decoded.isprintable():
            wrong.append(Violation("OTEL_EXPORTER_OTLP_HEADERS", f"{key.strip()!r} is not part of a key=value list"))
            continue
        found[key.strip().lower()] = decoded
    return found


def _ratio(environ: Mapping[str, str], wrong: list[Violation]) -> float | None:
    sampler = environ.get("OTEL_TRACES_SAMPLER", "")
    if not sampler:
        return None
    if sampler in _SAMPLERS:
        return _SAMPLERS[sampler]
    if sampler not in _RATIO_SAMPLERS:
        known = ", ".join((*_SAMPLERS, *_RATIO_SAMPLERS))
        wrong.append(Violation("OTEL_TRACES_SAMPLER", f"{sampler!r} is not one of {known}"))
        return None
    text = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1.0"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        wrong.append(Violation("OTEL_TRACES_SAMPLER_ARG", f"{text!r} is not a ratio (0 to 1)"))
        return None
    return ratio


def _follows_parent(sampler: str) -> bool:
    return not sampler or sampler.startswith("parentbased_")


def _formats(text: str, wrong: list[Violation]) -> tuple[str, ...] | None:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        return None
    # Baggage is a header like any other here and passes untouched.
    kept = tuple(dict.fromkeys(name for name in names if name not in {"baggage", "none"}))
    unknown = [name for name in kept if name not in _FORMATS]
    if unknown:
        wrong.append(
            Violation("OTEL_PROPAGATORS", f"{', '.join(unknown)} not among {', '.join(_FORMATS)}, baggage, none")
        )
        return None
    return kept
