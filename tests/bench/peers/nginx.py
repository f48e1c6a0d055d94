"""nginx as a plain reverse proxy: one worker, kept upstream connections, ten prefix locations, no tracing."""

from __future__ import annotations

from tests.bench.peers import WEIGHTS, Command, Site
from tests.bench.traffic import ROUTES
from tests.support.needs import TOOLS

_TEMPLATE = """\
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 16384;
error_log {directory}/error.log error;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log {log};
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 100000000;
  keepalive_timeout 3600s;
{pools}
  split_clients "$request_id" $pool {{ {share}% v2; * v1; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Request-Id $request_id;
    proxy_set_header Via "1.1 nginx";
    proxy_read_timeout 15s;
    proxy_next_upstream error timeout http_502 http_503 http_504;
    proxy_max_temp_file_size 0;
{locations}
  }}
}}
"""


def command(site: Site) -> Command:
    """Write its configuration."""
    pools = "\n".join(
        f"  upstream {name} {{ least_conn; keepalive 128; keepalive_requests 100000000; "
        + " ".join(f"server 127.0.0.1:{port};" for port in ports)
        + " }"
        for name, ports in site.versions.items()
    )
    path = site.directory / "nginx.conf"
    path.write_text(
        _TEMPLATE.format(
            directory=site.directory,
            port=site.port,
            log=site.access_log or "off",
            pools=pools,
            share=WEIGHTS["v2"],
            locations="\n".join(f"    location /r{i}/ {{ proxy_pass http://$pool; }}" for i in range(ROUTES)),
        )
    )
    return Command([TOOLS["nginx"].find() or "nginx", "-e", site.directory / "error.log", "-c", path])
