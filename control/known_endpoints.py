"""What the control server itself knows of endpoints, to keep operators from sending traffic to nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from control.errors import PreconditionError
from control.registry import Registry
from mesh.discovery.base import Source, SourceError
from mesh.model.name import Name
from mesh.model.service import Endpoint
from mesh.model.snapshot import Snapshot

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 2.0
"""An operator waits for the answer."""


class KnownEndpoints:
    """The endpoints in the embedded registry and in the sources the server was given (Consul)."""

    def __init__(self, registry: Registry, sources: Sequence[Source], clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._registry = registry
        self._sources = sources
        self._clock = clock

    async def of(self, service: Name) -> tuple[list[Endpoint], list[str]]:
        """All endpoints of ``service`` that anybody knows, and for each source that could not say why."""
        state = self._registry.state(service, self._clock())
        endpoints = list(state.endpoints) if state else []
        silent = []
        if not self._registry.is_settled(self._clock()):
            left_s = self._registry.settles - self._clock()
            silent.append(f"the registry has just started and knows all instances in {max(left_s, 0.1):.1f} s")
        for source in self._sources:
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    observation = await source.lookup(service)
            except (SourceError, TimeoutError) as error:
                silent.append(f"{source.name} did not answer ({str(error) or 'timeout'})")
                continue
            endpoints += observation.endpoints if observation else ()
        return endpoints, silent

    async def require_healthy(self, snapshot: Snapshot, service: Name, subsets: Sequence[str]) -> None:
        """Raise PreconditionError naming those of ``subsets`` that have no endpoint to send to."""
        if not subsets:
            return
        endpoints, silent = await self.of(service)
        policy = next((policy for policy in snapshot.policies if policy.name == service), None)
        defined = policy.subsets if policy else {}
        usable = [endpoint for endpoint in endpoints if endpoint.health.is_usable]
        empty = [s for s in subsets if not any(endpoint.in_subset(s, defined.get(s)) for endpoint in usable)]
        if not empty:
            return
        words = (
            f"subset {empty[0]} of {service} has"
            if len(empty) == 1
            else f"subsets {' and '.join(empty)} of {service} have"
        )
        has = sorted({e.metadata["version"] for e in usable if e.metadata.get("version")})
        message = (
            f"{words} no healthy endpoint: {len(endpoints)} known, {len(usable)} healthy"
            f"{', of version ' + ', '.join(has) if has else ''}. "
            + "".join(f"{reason}. " for reason in silent)
            + "Start one, or repeat with --force"
        )
        raise PreconditionError("NO_HEALTHY_ENDPOINT", message, {"service": str(service), "subsets": ",".join(empty)})
