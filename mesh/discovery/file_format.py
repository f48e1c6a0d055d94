"""The ``services:`` section of a discovery file and of a sidecar's configuration. Pure; names every problem.

services:
  reviews:                      # or namespace/reviews
    - address: 10.0.0.7
      port: 15006
      id: reviews-1             # default: address:port
      version: v2               # the same as metadata: {version: v2}
      metadata: {zone: a}
      tags: [canary]
      health: passing           # passing, warning, critical or leaving
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health

Services = Mapping[Name, tuple[Endpoint, ...]]

KEYS: Final = ("id", "address", "port", "version", "metadata", "tags", "health")
_HEALTHS: Final = ", ".join(health.value for health in Health)


def read_document(text: str, *, is_json: bool) -> Services:
    """Read a discovery file, whose one key is ``services``. Raises InvalidError with everything wrong in it."""
    try:
        if is_json:
            document = json.loads(text, object_pairs_hook=unique)
        else:
            from mesh.discovery.file_text import load  # noqa: PLC0415 - YAML is 1.6 MiB, for those who read files

            document = load(text)
    except InvalidError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidError([Violation("", f"is not {'JSON' if is_json else 'YAML'}: {_one_line(error)}")]) from error
    if not isinstance(document, dict) or "services" not in document:
        raise InvalidError([Violation("", "must be a mapping with the key services")])
    problems = [Violation(str(key), "is not a key here; accepted: services") for key in document if key != "services"]
    services: Services = {}
    try:
        services = read_services(document["services"])
    except InvalidError as error:
        problems += error.violations
    if problems:
        raise InvalidError(problems)
    return services


def read_services(section: object, at: str = "services") -> Services:
    """Read a parsed section; ``at`` is its path, for the report. Raises InvalidError with everything wrong in it."""
    problems: list[Violation] = []
    services: dict[Name, tuple[Endpoint, ...]] = {}
    if section is None:
        return services
    if not isinstance(section, dict):
        raise InvalidError([Violation(at, f"{section!r} must be a mapping of service names to lists of endpoints")])
    for key, raw in section.items():
        where = f"{at}.{key}"
        try:
            name = Name.parse(str(key))
        except ValueError as error:
            problems.append(Violation(where, str(error)))
            continue
        if name in services:
            problems.append(Violation(where, f"names the service {name} a second time"))
        services[name] = _read_endpoints(raw, where, problems)
    if problems:
        raise InvalidError(problems)
    return services


def _read_endpoints(raw: object, at: str, problems: list[Violation]) -> tuple[Endpoint, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        problems.append(Violation(at, f"{raw!r} must be a list of endpoints, each with address and port"))
        return ()
    endpoints: dict[str, Endpoint] = {}
    for index, item in enumerate(raw):
        where = f"{at}[{index}]"
        endpoint = _read_endpoint(item, where, problems)
        if endpoint is None:
            continue
        if endpoint.id in endpoints:
            problems.append(Violation(f"{where}.id", f"{endpoint.id!r} is there already; ids are unique in a service"))
        endpoints[endpoint.id] = endpoint
    return tuple(endpoints[id_] for id_ in sorted(endpoints))


def _read_endpoint(raw: object, at: str, problems: list[Violation]) -> Endpoint | None:
    if not isinstance(raw, dict):
        problems.append(Violation(at, f"{raw!r} must be a mapping with address and port"))
        return None
    before = len(problems)
    problems += [
        Violation(f"{at}.{key}", f"is not a key here; accepted: {', '.join(KEYS)}") for key in raw if key not in KEYS
    ]
    address = _text(raw, "address", at, problems, is_required=True)
    if " " in address:
        problems.append(Violation(f"{at}.address", f"{address!r} must be a host name or an IP address"))
    port = raw.get("port")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        problems.append(Violation(f"{at}.port", f"{port!r} must be a whole number from 1 to 65535"))
        port = 0
    metadata = _read_metadata(raw, at, problems)
    tags = raw.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        problems.append(Violation(f"{at}.tags", f"{tags!r} must be a list of texts"))
        tags = []
    health = raw.get("health", Health.PASSING.value)
    if health not in [each.value for each in Health]:
        problems.append(Violation(f"{at}.health", f"{health!r} must be one of {_HEALTHS}"))
        health = Health.PASSING.value
    if len(problems) > before:
        return None
    id_ = _text(raw, "id", at, problems) or f"{address}:{port}"
    return Endpoint(id_, address, port, metadata, tuple(tags), Health(health))


def _read_metadata(raw: dict[Any, Any], at: str, problems: list[Violation]) -> dict[str, str]:
    given = raw.get("metadata") or {}
    if not isinstance(given, dict):
        problems.append(Violation(f"{at}.metadata", f"{given!r} must be a mapping of texts"))
        return {}
    problems += [
        Violation(f"{at}.metadata.{key}", f"{value!r} must be a text; put it in quotes")
        for key, value in given.items()
        if not (isinstance(key, str) and isinstance(value, str))
    ]
    metadata = dict(given)
    version = _text(raw, "version", at, problems)
    if version and metadata.setdefault("version", version) != version:
        problems.append(Violation(f"{at}.version", f"{version!r} contradicts metadata.version {metadata['version']!r}"))
    return metadata


def _text(raw: dict[Any, Any], key: str, at: str, problems: list[Violation], *, is_required: bool = False) -> str:
    value = raw.get(key)
    if value is None and not is_required:
        return ""
    if not isinstance(value, str) or not value:
        # YAML reads 1.10 as the number 1.1: better refused than served as another version.
        problems.append(Violation(f"{at}.{key}", f"{value!r} must be a text that is not empty; put it in quotes"))
        return ""
    return value


def unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict of the pairs. Raises InvalidError for a repeated key, which would silently lose its first value."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if isinstance(key, (dict, list)):
            raise InvalidError([Violation(str(key), "is no key: keys are texts")])
        if key in result:
            raise InvalidError([Violation(str(key), "is there twice in one mapping")])
        result[key] = value
    return result


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
