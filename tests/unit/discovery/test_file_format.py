"""What a discovery file may say, and how it is told what is wrong."""

import pytest

from mesh.discovery.file_format import read_document, read_services
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health


def problems(text: str, *, is_json: bool = False) -> list[str]:
    with pytest.raises(InvalidError) as caught:
        read_document(text, is_json=is_json)
    return [str(each) for each in caught.value.violations]


def test_a_full_document_is_read() -> None:
    services = read_document(
        """
        services:
          reviews:
            - {id: r2, address: "::1", port: 2, version: v2, metadata: {zone: a}, tags: [canary], health: warning}
            - {address: 10.0.0.1, port: 1}
          shop/ratings: []
          empty:
        """,
        is_json=False,
    )
    assert services == {
        Name("default", "reviews"): (
            Endpoint("10.0.0.1:1", "10.0.0.1", 1),
            Endpoint("r2", "::1", 2, {"zone": "a", "version": "v2"}, ("canary",), Health.WARNING),
        ),
        Name("shop", "ratings"): (),
        Name("default", "empty"): (),
    }


def test_json_is_read() -> None:
    services = read_document('{"services": {"a": [{"address": "h", "port": 1}]}}', is_json=True)
    assert services == {Name("default", "a"): (Endpoint("h:1", "h", 1),)}


def test_everything_wrong_is_named_in_one_report() -> None:
    found = problems(
        """
        services:
          Reviews: []
          a:
            - {address: h, port: 70000, version: 1.10, health: fine, colour: red}
            - {port: true, metadata: {zone: 1}, tags: x}
            - 7
          b: 5
          c:
            - {id: x, address: h, port: 1}
            - {id: x, address: h, port: 2, version: v1, metadata: {version: v2}}
            - {id: x, address: h, port: 3}
            - {address: "h h", port: 3}
        servises: {}
        """
    )
    starts = [
        "servises: is not a key here; accepted: services",
        "services.Reviews: name 'Reviews' is not a DNS label",
        "services.a[0].colour: is not a key here; accepted: id, address, port, version, metadata, tags, health",
        "services.a[0].port: 70000 must be a whole number from 1 to 65535",
        "services.a[0].version: 1.1 must be a text",
        "services.a[0].health: 'fine' must be one of passing, warning, critical, leaving",
        "services.a[1].address: None must be a text",
        "services.a[1].port: True must be a whole number",
        "services.a[1].metadata.zone: 1 must be a text; put it in quotes",
        "services.a[1].tags: 'x' must be a list of texts",
        "services.a[2]: 7 must be a mapping with address and port",
        "services.b: 5 must be a list of endpoints",
        "services.c[1].version: 'v1' contradicts metadata.version 'v2'",
        "services.c[2].id: 'x' is there already",
        "services.c[3].address: 'h h' must be a host name",
    ]
    assert len(found) == len(starts), found
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "is_json", "message"),
    [
        ("services: [", False, "is not YAML"),
        ("{", True, "is not JSON"),
        ("[]", False, "must be a mapping with the key services"),
        ("", False, "must be a mapping with the key services"),
        ("services: 5", False, "services: 5 must be a mapping"),
        ("services: {a: [], a: []}", False, "a: is there twice"),
        ('{"services": {"a": [], "a": []}}', True, "a: is there twice"),
        ("services: {a: [], default/a: []}", False, "names the service a a second time"),
        ("services: !!python/object/apply:os.system [true]", False, "is not YAML"),
        ("services: {[a]: 1}", False, "is no key"),
        ("services: " + "[" * 1100, False, "is not YAML"),
    ],
)
def test_what_is_no_such_document_is_refused(text: str, is_json: bool, message: str) -> None:  # noqa: FBT001
    assert message in "\n".join(problems(text, is_json=is_json))


def test_a_section_is_read_under_the_name_it_has() -> None:
    with pytest.raises(InvalidError, match=r"discovery\.services\.a: 1 must be"):
        read_services({"a": 1}, "discovery.services")
    assert read_services(None) == {}
