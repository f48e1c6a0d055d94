"""Traefik: ten prefix routers, a weighted split over two services of five servers, metrics.

No tracing: it follows its caller, whose traces are all sampled, and would record every request.
"""

from __future__ import annotations

import json

from tests.bench.peers import RETRIES, WEIGHTS, Command, Site
from tests.bench.traffic import ROUTES
from tests.support.needs import TOOLS


def command(site: Site) -> Command:
    """Write its dynamic configuration. GOMAXPROCS=1: it has one core."""
    pools = {
        name: {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{port}"} for port in ports]}}
        for name, ports in site.versions.items()
    }
    split = {"weighted": {"services": [{"name": name, "weight": weight} for name, weight in WEIGHTS.items()]}}
    routers = {
        f"r{i}": {"rule": f"PathPrefix(`/r{i}/`)", "service": "split", "middlewares": ["retry"]} for i in range(ROUTES)
    }
    middlewares = {"retry": {"retry": {"attempts": RETRIES}}}
    http = {"routers": routers, "services": {**pools, "split": split}, "middlewares": middlewares}
    path = site.directory / "dynamic.yml"
    path.write_text(json.dumps({"http": http}))  # JSON is YAML
    words = [
        TOOLS["traefik"].find() or "traefik",
        f"--entryPoints.web.address=127.0.0.1:{site.port}",
        "--entryPoints.web.transport.respondingTimeouts.idleTimeout=3600s",
        f"--entryPoints.metrics.address=127.0.0.1:{site.admin_port}",
        f"--providers.file.filename={path}",
        "--serversTransport.maxIdleConnsPerHost=128",
        "--metrics.prometheus=true",
        "--metrics.prometheus.entryPoint=metrics",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
        "--log.level=ERROR",
    ]
    return Command(list(words), {"GOMAXPROCS": "1"})
