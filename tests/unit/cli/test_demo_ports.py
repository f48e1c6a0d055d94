"""Where the demo's processes listen: mesh/cli/demo/processes.py."""

import socket

from mesh.cli.demo.processes import free_ports


def test_ports_are_free_and_none_of_those_that_outgoing_connections_take() -> None:
    for _ in range(20):
        ports = free_ports(24)
        assert len(set(ports)) == 24
        assert 10_000 <= min(ports) <= max(ports) < 20_000
        for port in ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))


def test_a_port_in_use_is_not_among_them(monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_ports(1)[0]))
        port = taken.getsockname()[1]
        monkeypatch.setattr("mesh.cli.demo.processes._LOWEST", port)
        monkeypatch.setattr("mesh.cli.demo.processes._HIGHEST", port + 40)
        for _ in range(20):
            assert port not in free_ports(2)
