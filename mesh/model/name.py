"""Names of resources: (namespace, name), each a DNS label."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_NAMESPACE = "default"
DEFAULT_SUFFIXES = (".service.consul",)
"""The domains below which names are services in any case: Consul's own."""

# RFC 1123 §2.1: letters, digits and inner hyphens, at most 63 octets; lower case, since DNS compares that way.
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_label(text: str) -> bool:
    """Tell whether ``text`` is a lower-case DNS label, the only form a service name may have."""
    return _LABEL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """The identity of a service, route or policy within the mesh."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str, namespace: str = DEFAULT_NAMESPACE) -> Name:
        """Read ``name`` or ``namespace/name``; raises ValueError naming the part that is no DNS label."""
        head, slash, tail = text.partition("/")
        namespace, name = (head, tail) if slash else (namespace, head)
        for part, value in (("namespace", namespace), ("name", name)):
            if not is_label(value):
                message = f"{part} {value!r} is not a DNS label (a-z, 0-9 and inner '-', at most 63 characters)"
                raise ValueError(message)
        return cls(namespace, name)

    def __str__(self) -> str:
        """The short form: the namespace is left out where it is the default one."""
        return self.name if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{self.name}"
