"""Our sidecar, with its certificate shown to its program's calls too: TLS in, routes, and TLS out in one process.

    python -m tests.bench.peers.tls_sidecar sidecar --config FILE

A sidecar shows its certificate at its inbound listener, which has no routes, and has its routes at the
outbound one, which is on loopback and in clear text. To compare all of it with one listener of Envoy, the outbound
listener is given the certificate; the code that runs is the same.
"""

from __future__ import annotations

import proxy.sidecar
from mesh.cli.main import main
from proxy.config import SidecarConfig
from proxy.dataplane import DataPlane
from proxy.listeners import Listeners, build_listeners, load_certificates


def _build(plane: DataPlane, config: SidecarConfig, token: str) -> Listeners:
    built = build_listeners(plane, config, token)
    built.outbound.tls = load_certificates(config)
    return built


if __name__ == "__main__":
    vars(proxy.sidecar)["build_listeners"] = _build
    main()
