"""The programs behind the proxies: one nginx that listens on ten ports and says which of them answered."""

from __future__ import annotations

from pathlib import Path

from tests.bench.machine import LOAD_CORE, pinned
from tests.bench.peers import Certificate
from tests.support.needs import TOOLS

BODY_BYTES = 66
SIZES = {"64kib": 64 << 10, "1mib": 1 << 20}
_TEMPLATE = """\
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 16384;
error_log {directory}/error.log error;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  default_type text/plain;
  keepalive_requests 100000000;
  keepalive_timeout 3600s;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16;
{certificate}  server {{
{listens}
    root {directory}/www;
    location / {{ return 200 "{body}"; }}
{files}
  }}
}}
"""


def command(
    directory: Path, ports: tuple[int, ...], *, http2: bool = False, files: Certificate | None = None
) -> list[str | Path]:
    """Write its configuration and what it serves. ``http2``: by prior knowledge. ``files``: TLS, and nothing else."""
    www = directory / "www"
    www.mkdir()
    for name, size in SIZES.items():
        (www / name).write_bytes(b"0123456789abcdef" * (size // 16))
    port_words = "port $server_port "  # five digits each
    certificate = f"  ssl_certificate {files.chain};\n  ssl_certificate_key {files.key};\n" if files else ""
    body = port_words + "." * (BODY_BYTES - len("port 20000 "))
    path = directory / "nginx.conf"
    path.write_text(
        _TEMPLATE.format(
            directory=directory,
            listens="\n".join(
                f"    listen 127.0.0.1:{port}{' http2' * http2}{' ssl' * bool(files)} backlog=4096;" for port in ports
            ),
            certificate=certificate,
            body=body,
            files="\n".join(f"    location ~ ^/r[0-9]/{name}/ {{ try_files /{name} =404; }}" for name in SIZES),
        )
    )
    return pinned(LOAD_CORE, TOOLS["nginx"].find() or "nginx", "-e", directory / "error.log", "-c", path)


def port_of(body: bytes) -> int:
    """Which upstream answered."""
    return int(body[5:10])
