"""What the two proxies that must be alike are told, case by case."""

import json
from pathlib import Path

import pytest

from tests.bench.peers import Certificate, Site, envoy, sidemesh

FILES = Certificate(Path("/c/shop.pem"), Path("/c/shop-key.pem"), Path("/c/ca.pem"))


def told(tmp_path, **more):
    """The sidecar's settings and Envoy's bootstrap."""
    site = Site("x", tmp_path, 1, 2, tuple(range(10, 20)), 3, 4, **more)
    words = sidemesh.command(site).words
    envoy.command(site)
    return json.loads((tmp_path / "sidecar.yaml").read_text()), json.loads((tmp_path / "envoy.json").read_text()), words


def cluster(bootstrap, name="v1"):
    return next(each for each in bootstrap["static_resources"]["clusters"] if each["name"] == name)


def manager(bootstrap):
    (listener,) = bootstrap["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def test_clear_text_is_the_ordinary_case(tmp_path):
    ours, theirs, words = told(tmp_path)
    assert "mesh.cli.main" in words
    assert "tls-cert" not in ours
    assert len(ours["routes"]) == 1
    assert "transport_socket" not in cluster(theirs)
    assert "upgrade_configs" not in manager(theirs)


def test_with_a_certificate_both_show_it_and_verify_the_upstreams(tmp_path):
    ours, theirs, words = told(tmp_path, behind="tls", certificate=FILES)
    assert (ours["tls-cert"], ours["tls-key"]) == ("/c/shop.pem", "/c/shop-key.pem")
    assert "tests.bench.peers.tls_sidecar" in words
    (policy,) = ours["routes"][1:]
    assert policy["spec"] == {"tls": {"caFile": "/c/ca.pem"}}
    common = cluster(theirs)["transport_socket"]["typed_config"]["common_tls_context"]
    assert common["validation_context"] == {"trusted_ca": {"filename": "/c/ca.pem"}}
    chain = theirs["static_resources"]["listeners"][0]["filter_chains"][0]
    (shown,) = chain["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"]
    assert shown["private_key"] == {"filename": "/c/shop-key.pem"}
    assert "transport_socket" not in cluster(theirs, "otlp")


def test_envoy_takes_up_websockets_where_they_are_measured(tmp_path):
    _, theirs, _ = told(tmp_path, behind="websocket")
    assert manager(theirs)["upgrade_configs"] == [{"upgrade_type": "websocket"}]


@pytest.mark.parametrize("holds", [False, True])
def test_streams_that_are_held_have_no_timeouts_and_room(tmp_path, holds):
    ours, theirs, _ = told(tmp_path, behind="grpc", holds_streams=holds)
    rules = ours["routes"][0]["spec"]["rules"]
    assert all(("timeouts" in rule) is not holds for rule in rules)
    assert ("limits" in ours["routes"][1]["spec"]) is holds
    routes = manager(theirs)["route_config"]["virtual_hosts"][0]["routes"]
    assert {route["route"]["timeout"] for route in routes} == {"0s" if holds else "15s"}
    assert ("circuit_breakers" in cluster(theirs)) is holds
    assert "circuit_breakers" not in cluster(theirs, "otlp")
