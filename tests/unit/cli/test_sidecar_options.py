"""Every setting of a sidecar is read with its type, and everything wrong is told in one report."""

from pathlib import Path

import pytest
import yaml

from mesh.cli.sidecar_options import read_config
from mesh.model.errors import InvalidError
from proxy.config import Address
from proxy.http1.limits import ConnectionLimits, HeadLimits

# (key, value as YAML gives it, what the report says of it)
WRONG = [
    ("inbound", "15006x", "'15006x' is not HOST:PORT"),
    ("inbound", True, "True is not text"),
    ("outbound", [1], "[1] is not text"),
    ("service", "Bad_Name", "'Bad_Name' is not a DNS label"),
    ("namespace", "foo bar", "'foo bar' is not a DNS label"),
    ("port", "http", "'http' is not a whole number"),
    ("port", 70000, "70000 is not a port"),
    ("workers", 1.5, "1.5 is not a whole number"),
    ("workers", 0, "0 is not a number of workers"),
    ("drain-s", float("nan"), "nan is not a number"),
    ("drain-s", float("inf"), "inf is not a number"),
    ("grace-s", -1, "-1.0 is negative"),
    ("max-connections", 0, "0 is not a number of connections"),
    ("trace-ratio", "much", "'much' is not a number"),
    ("trace-formats", ["tracecontext", "jaeger"], "['jaeger'] are not among"),
    ("trace-tcp", "some", "'some' is neither 'on' nor 'off'"),
    ("trace-tcp", 1, "1 is neither 'on' nor 'off'"),
    ("trace-formats", 3, "3 is neither a list of words"),
    ("egress", "alow", "'alow' is neither 'allow' nor 'deny'"),
    ("egress-connect", "443;8443", "'443;8443' is neither a list of ports"),
    ("egress-connect", [443, 0], "[443, 0] are not ports"),
    ("egress-connect", 443, "needs egress: allow"),
    ("access-log", "some", "'some' is not one of off, sampled, all"),
    ("consul", ["x"], "['x'] is not text"),
    ("services", "services.yaml", "--services names a file of its own"),
    ("routes", {"kind": "HTTPRoute"}, "is not a list of HTTPRoute"),
    ("limits", {"idle-s": 0}, "idle-s: 0 is not a number above 0"),
    ("limits", {"idle": 1}, "idle is none of request-line-bytes"),
    ("limits", 5, "5 is not a mapping of"),
    ("protocol", "udp", "'udp' is not one of caller, http1, http2, tcp, detect"),
    ("upstreams", {"db": "5432/udp"}, "db=5432/udp is not NAME=PORT, NAME=PORT/tcp or NAME=PORT/detect"),
    ("no-such-key", 1, "is no setting"),
]


def read(tmp_path: Path, **keys: object):
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump({"service": "pay"} | {key.replace("_", "-"): value for key, value in keys.items()}))
    return read_config({"config": path})


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=lambda each: str(each)[:30])
def test_a_wrong_value_is_named_with_what_is_accepted(tmp_path: Path, key: str, value: object, said: str) -> None:
    with pytest.raises(InvalidError) as refused:
        read(tmp_path, **{key: value})
    (violation,) = refused.value.violations
    assert violation.field == key
    assert said in violation.message


def test_everything_wrong_stands_in_one_report(tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as refused:
        read(tmp_path, inbound="x", egress="alow", port="y", drain_s=-1)
    assert {violation.field for violation in refused.value.violations} == {"inbound", "egress", "port", "drain-s"}


def test_routes_and_services_of_the_file_are_checked_whole(tmp_path: Path) -> None:
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "pay"},
             "spec": {"parentRefs": [{"kind": "Service", "group": "", "name": "pay"}],
                      "rules": [{"backendRefs": [{"name": "pay", "weight": -1}]}]}}  # fmt: skip
    with pytest.raises(InvalidError) as refused:
        read(tmp_path, routes=[route], services={"pay": [{"address": "127.0.0.1", "port": 0}]})
    told = str(refused.value)
    assert "weight" in told
    assert "services.pay[0].port" in told


def test_what_yaml_gives_in_its_own_types_is_taken(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        inbound="0.0.0.0:0",
        admin=15000,
        consul="10.0.0.1:8500",
        access_log=False,
        trace_formats=["tracecontext", "b3"],
        suffix="mesh",
        egress="allow",
        limits={"idle-s": 60, "request-line-bytes": 8192, "header-count": 50},
    )
    assert (config.inbound, config.admin) == (Address("0.0.0.0", 0), Address("127.0.0.1", 15000))
    assert (config.consul, config.access_log, config.egress) == ("http://10.0.0.1:8500", "off", True)
    assert (config.trace_formats, config.suffixes) == (("tracecontext", "b3"), (".service.consul", ".mesh"))
    assert config.limits == ConnectionLimits(HeadLimits(line_bytes=8192, count=50), idle_s=60)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"control": "127.0.0.1:15010"}, "sidemesh/sidecar"),
        ({"consul": "127.0.0.1:8500"}, "sidemesh/sidecar"),
        ({"control": "127.0.0.1:15010", "data": "none"}, None),
        ({"control": "127.0.0.1:15010", "data": "/var/lib/x"}, "/var/lib/x"),
        ({}, None),  # there is nothing to keep
        ({"control": "127.0.0.1:15010", "inbound": "127.0.0.1:0"}, None),  # named anew at each start
        ({"control": "127.0.0.1:15010", "inbound": "127.0.0.1:0", "instance_id": "a"}, "sidemesh/sidecar"),
    ],
)
def test_a_sidecar_with_something_to_lose_keeps_it_by_default(
    given: dict[str, str], kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert read(tmp_path, **given).data_dir == (None if kept is None else tmp_path / kept)


def test_a_local_port_says_what_is_spoken_there_and_limits_how_long_it_is_looked_for(tmp_path: Path) -> None:
    config = read(
        tmp_path, upstreams={"a": 1, "db": "2/tcp", "any": "3/detect"}, limits={"peek-s": 0.05, "tunnel-idle-s": 60}
    )
    assert {str(service): port for service, port in config.upstreams.items()} == {"a": 1, "db": 2, "any": 3}
    assert [str(service) for service in config.tcp_upstreams] == ["db"]
    assert [str(service) for service in config.detected_upstreams] == ["any"]
    assert config.limits == ConnectionLimits(peek_s=0.05, tunnel_idle_s=60)
