"""HAProxy as a plain reverse proxy: one thread, kept upstream connections, ten prefix rules, no tracing."""

from __future__ import annotations

from tests.bench.peers import WEIGHTS, Command, Site
from tests.bench.traffic import ROUTES
from tests.support.needs import TOOLS

_TEMPLATE = """\
global
  nbthread 1
  maxconn 8000
  stats socket {directory}/admin.sock
defaults
  mode http
  timeout connect 1s
  timeout client 3600s
  timeout server 15s
  timeout http-keep-alive 3600s
  retries {retries}
  retry-on conn-failure empty-response 502 503 504
  option redispatch
  option forwardfor
  option http-keep-alive
  http-reuse always
  unique-id-format %[uuid()]
frontend bench
  bind 127.0.0.1:{port} backlog 4096
  unique-id-header X-Request-Id
{rules}
"""


def command(site: Site) -> Command:
    """Write its configuration."""
    rules = [f"  acl routed path_beg {' '.join(f'/r{i}/' for i in range(ROUTES))}"]
    rules += [f"  use_backend v2 if routed {{ rand(100) lt {WEIGHTS['v2']} }}", "  use_backend v1 if routed"]
    for name, ports in site.versions.items():
        rules += [f"backend {name}", "  balance leastconn"]
        rules += [f"  server s{port} 127.0.0.1:{port} pool-max-conn 128" for port in ports]
    path = site.directory / "haproxy.cfg"
    path.write_text(_TEMPLATE.format(directory=site.directory, port=site.port, retries=2, rules="\n".join(rules)))
    return Command([TOOLS["haproxy"].find() or "haproxy", "-db", "-q", "-f", path])
