"""Reading Consul's answers and writing its registrations; the JSON was recorded from 1.8.7."""

import json
from typing import Any

import pytest

from mesh.discovery.base import HealthCheck, SourceError, SourceRefused
from mesh.discovery.consul_client import ConsulConfig, Reply, check, read_checks, read_entries, read_health
from mesh.discovery.consul_registration import Kept, judge, registration_body
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance

REVIEWS = Name("default", "reviews")
SERF = {"CheckID": "serfHealth", "Status": "passing"}


def entry(id_: str = "a", *, node: str = "n1", checks: tuple[dict[str, str], ...] = (SERF,), **service: Any) -> dict:
    return {
        "Node": {"Node": node, "Address": "10.0.0.9"},
        "Service": {"ID": id_, "Service": "reviews", "Address": "10.0.0.1", "Port": 80, "Meta": {}, "Tags": []}
        | service,
        "Checks": list(checks),
    }


def checks(**statuses: str) -> list[dict[str, str]]:
    return [{"CheckID": id_, "Status": status} for id_, status in statuses.items()]


@pytest.mark.parametrize(
    ("found", "health"),
    [
        ([], Health.PASSING),
        (checks(serfHealth="passing", own="passing"), Health.PASSING),
        (checks(serfHealth="passing", own="warning"), Health.WARNING),
        (checks(serfHealth="passing", own="critical", other="warning"), Health.CRITICAL),
        (checks(serfHealth="critical", own="passing"), Health.CRITICAL),
        (checks(own="something new"), Health.CRITICAL),
        ([{"CheckID": "_service_maintenance:a", "Status": "critical"}], Health.LEAVING),
        ([{"CheckID": "_node_maintenance", "Status": "critical"}], Health.LEAVING),
        ([{"CheckID": "_service_maintenance:b", "Status": "critical"}], Health.CRITICAL),
    ],
)
def test_the_worst_check_counts_and_maintenance_is_a_leaving(found: list[dict[str, str]], health: Health) -> None:
    assert read_checks("a", found) is health


def test_an_instance_without_address_is_at_its_node_and_one_without_port_is_no_endpoint() -> None:
    assert read_entries(REVIEWS, [entry("a", Address=""), entry("b", Port=0)]) == (Endpoint("a", "10.0.0.9", 80),)


def test_null_where_a_list_or_a_mapping_is_meant_is_empty() -> None:
    assert read_entries(REVIEWS, [entry(Meta=None, Tags=None)]) == (Endpoint("a", "10.0.0.1", 80),)


def test_metadata_and_tags_come_along() -> None:
    (found,) = read_entries(REVIEWS, [entry(Meta={"version": "v2"}, Tags=["x"])])
    assert (found.metadata, found.tags) == ({"version": "v2"}, ("x",))


def test_only_the_namespace_asked_for_is_read() -> None:
    entries = [entry("a"), entry("b", Meta={"namespace": "shop"}), entry("c", Meta={"namespace": "default"})]
    assert [each.id for each in read_entries(REVIEWS, entries)] == ["a", "c"]
    assert [each.id for each in read_entries(Name("shop", "reviews"), entries)] == ["b"]


def test_ids_that_two_nodes_use_are_told_apart() -> None:
    entries = [entry("web", node="n2"), entry("web", node="n1"), entry("a")]
    assert [each.id for each in read_entries(REVIEWS, entries)] == ["a", "web@n1", "web@n2"]


def test_the_index_may_have_64_bits_and_the_leader_may_be_missing() -> None:
    headers = {"X-Consul-Index": "16648083847831510874", "X-Consul-KnownLeader": "false", "Age": "7"}
    answer = read_health(REVIEWS, Reply(200, headers, b"[]"))
    assert (answer.index, answer.has_leader, answer.cache_age_s) == (16648083847831510874, False, 7)
    assert read_health(REVIEWS, Reply(200, {}, b"[]")).index == 0


@pytest.mark.parametrize(
    "body", [b"", b"{}x", b"[1]", b"{}", b'[{"Node": {}}]', b'[{"Service": null}]', b"[" * 100_000]
)
def test_an_answer_that_is_not_understood_is_an_error_of_the_source(body: bytes) -> None:
    if body == b"{}":  # an empty mapping has no entries either, which is as good as a list
        assert read_health(REVIEWS, Reply(200, {}, body)).endpoints == ()
        return
    with pytest.raises(SourceError, match="not understood"):
        read_health(REVIEWS, Reply(200, {}, body))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, SourceRefused), (401, SourceRefused), (400, SourceRefused), (429, SourceError), (500, SourceError)],
)
def test_a_status_is_a_refusal_or_an_outage(status: int, kind: type[SourceError]) -> None:
    with pytest.raises(SourceError) as caught:
        check(Reply(status, {}, b"ACL not found"))
    assert type(caught.value) is kind
    assert "ACL not found" in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "address", "url"),
    [
        ({}, None, "http://127.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "consul:1"}, None, "http://consul:1"),
        ({"CONSUL_HTTP_ADDR": "consul:1"}, "other:2", "http://other:2"),
        ({"CONSUL_HTTP_ADDR": "https://consul:1/"}, None, "https://consul:1"),
        ({"CONSUL_HTTP_ADDR": "consul:1", "CONSUL_HTTP_SSL": "true"}, None, "https://consul:1"),
        ({}, "[::1]:8500", "http://[::1]:8500"),
    ],
)
def test_the_address_comes_from_the_argument_or_consuls_own_variable(
    environ: dict[str, str], address: str | None, url: str
) -> None:
    assert ConsulConfig.make(environ, address).url == url


@pytest.mark.parametrize("address", ["unix:///run/consul.sock", "ftp://x", "http://", "host:99999", "host:x", "[::1"])
def test_an_address_of_another_form_is_refused_with_the_accepted_ones(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        ConsulConfig.make({}, address)


def test_the_token_comes_from_the_argument_or_the_environment_and_is_never_shown() -> None:
    assert ConsulConfig.make({"CONSUL_HTTP_TOKEN": "secret"}).token == "secret"
    config = ConsulConfig.make({"CONSUL_HTTP_TOKEN": "secret"}, token="other")
    assert config.token == "other"
    assert "other" not in repr(config)


HERE = Instance(Name("shop", "reviews"), Endpoint("a", "10.0.0.1", 80, {"version": "v2"}, ("x",)))


def test_a_registration_with_a_url_asks_consul_to_check_it() -> None:
    body = registration_body(HERE, Health.PASSING, HealthCheck("http://10.0.0.1:80/live", 1.5, 0.5, 90))
    assert body == {
        "ID": "a",
        "Name": "reviews",
        "Address": "10.0.0.1",
        "Port": 80,
        "Meta": {"version": "v2", "namespace": "shop"},
        "Tags": ["x"],
        "Check": {
            "CheckID": "service:a",
            "Name": "sidemesh sidecar",
            "HTTP": "http://10.0.0.1:80/live",
            "Interval": "1500ms",
            "Timeout": "500ms",
            "DeregisterCriticalServiceAfter": "90000ms",
            "Status": "passing",
        },
    }


def test_a_registration_without_a_url_has_a_ttl_and_the_default_namespace_is_not_written() -> None:
    there = Instance(REVIEWS, Endpoint("a", "10.0.0.1", 80, {"namespace": "stale"}))
    body = registration_body(there, Health.LEAVING, None)
    assert body["Meta"] == {}
    assert isinstance(body["Check"], dict)
    assert (body["Check"]["TTL"], body["Check"]["Status"]) == ("10000ms", "critical")


def test_the_agents_answer_about_an_instance_is_judged() -> None:
    ours = json.dumps({"Address": "10.0.0.1", "Port": 80}).encode()
    other = json.dumps({"Address": "10.0.0.2", "Port": 80}).encode()
    assert judge(HERE, Reply(200, {}, ours)) is Kept.YES
    assert judge(HERE, Reply(200, {}, other)) is Kept.TAKEN_OVER
    assert judge(HERE, Reply(404, {}, b"unknown service ID: a")) is Kept.FORGOTTEN
    for reply in (Reply(500, {}, b""), Reply(200, {}, b"null"), Reply(200, {}, b"{}")):
        with pytest.raises(SourceError):
            judge(HERE, reply)
