"""A sidecar with certificates, as an operator runs it: one port, two workers, a renewed certificate, a wrong file."""

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.fleet import Fleet, get
from tests.support.process import until

pytestmark = pytest.mark.e2e


async def serial(port: int, authority: Authority) -> tuple[str, bytes]:
    """Whose certificate is shown, and the answer to a request."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="pay")
    writer.write(b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
    writer.close()
    return found, answer


@pytest.mark.parametrize("workers", [1, 2])
async def test_tls_and_clear_text_on_one_port_and_a_renewed_certificate(tmp_path: Path, workers: int) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("pay")
    async with Fleet(tmp_path, workers=workers) as fleet:
        pay = await fleet.instance("pay", "--tls-cert", str(certificate), "--tls-key", str(key))
        port = pay.sidecar.inbound
        first, answer = await serial(port, authority)
        assert answer.startswith(b"HTTP/1.1 200")
        assert (await get(f"http://127.0.0.1:{port}/", {"host": "pay"})).status == 200
        authority.issue("pay")

        async def is_renewed() -> bool:
            shown, answer = await serial(port, authority)
            assert answer.startswith(b"HTTP/1.1 200")
            return shown != first

        await until(is_renewed, what="the new certificate", timeout_s=10)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
        metric = "mesh_listener_failed_handshakes_total"
        await until(lambda: _is_above(pay.sidecar, metric), what="the failed handshake to be counted")


async def _is_above(sidecar, metric: str) -> bool:
    return await sidecar.metric(metric) > 0


async def test_a_wrong_file_is_said_at_the_start(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        for options, said in (
            (("--tls-cert", "/no/cert.pem", "--tls-key", "/no/key.pem"), "/no/cert.pem is not there"),
            (("--tls-cert", "/no/cert.pem"), "belong together"),
        ):
            sidecar = fleet.launch("pay", "--port", "9", *options)
            assert await sidecar.process.wait(timeout_s=20) == 2, sidecar.process.output()
            assert said in sidecar.process.output()
            assert "Traceback" not in sidecar.process.output()
