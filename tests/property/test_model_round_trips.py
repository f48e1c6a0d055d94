"""YAML, protobuf and model say the same: whatever sound value goes out by one way comes back by it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.documents import Node
from mesh.model.errors import InvalidError
from mesh.model.gateway_api import parse, read_documents, to_yaml
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, Limits, OutlierDetection, RetryBudgetPolicy, ServicePolicy, TlsPolicy
from mesh.model.route import (
    BackendRef,
    MethodMatch,
    Parent,
    PathMatch,
    PathType,
    Retry,
    Route,
    RouteKind,
    RouteMatch,
    Rule,
    Timeouts,
    ValueMatch,
    ValueType,
)
from mesh.model.snapshot import Kind, make_snapshot
from mesh.model.validate import METHODS, check
from mesh.model.wire import decode_resource, encode_resource, push_from_snapshot, snapshot_from_push

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
names = st.builds(Name, labels, labels)
subsets = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
milliseconds = st.integers(1, 50_000_000).map(lambda ms: ms / 1000)
ports = st.none() | st.integers(1, 65_535)
paths = st.builds(
    PathMatch, st.just(PathType.REGULAR_EXPRESSION), st.sampled_from(["/a/.*", "[0-9]+", "(?i)/x|/y"])
) | st.builds(
    PathMatch,
    st.sampled_from([PathType.EXACT, PathType.PREFIX]),
    st.lists(st.from_regex(r"[A-Za-z0-9_~!$&'()*+,;=:@-]{1,8}", fullmatch=True), max_size=4).map(
        lambda e: "/" + "/".join(e)
    ),
)
tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9a-z-]{1,12}", fullmatch=True)
texts = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x2FF, exclude_characters="\x7f"), min_size=1, max_size=20
)


def conditions(names):
    return st.lists(
        st.builds(ValueMatch, names, texts)
        | st.builds(ValueMatch, names, st.sampled_from(["a.*", "[0-9]{3}"]), st.just(ValueType.REGULAR_EXPRESSION)),
        max_size=3,
        unique_by=lambda condition: condition.name,
    ).map(tuple)


matches = st.builds(
    RouteMatch,
    paths,
    conditions(tokens),
    conditions(tokens | tokens.map(str.upper)),
    st.none() | st.sampled_from(METHODS),
)
timeouts = st.builds(Timeouts, st.none() | milliseconds, st.none()) | st.tuples(milliseconds, milliseconds).map(
    lambda pair: Timeouts(max(pair), min(pair))
)
retries = st.none() | st.builds(
    Retry,
    st.lists(st.integers(400, 599), max_size=4, unique=True).map(tuple),
    st.integers(0, 10),
    st.none() | milliseconds | st.just(0.0),
)
calls = st.builds(
    MethodMatch,
    st.none() | st.from_regex(r"[a-z_]{1,5}(\.[A-Za-z_][A-Za-z_0-9]{0,3}){0,2}", fullmatch=True),
    st.none() | st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,8}", fullmatch=True),
) | st.builds(MethodMatch, st.sampled_from(["a.*", "[a-z]+\\.V[12]"]), st.none(), st.just(ValueType.REGULAR_EXPRESSION))
named_calls = calls.filter(lambda call: call.service is not None or call.method is not None or call == MethodMatch())
call_matches = st.builds(RouteMatch, headers=conditions(tokens), grpc=named_calls)
call_retries = st.none() | st.builds(
    Retry,
    st.just(()),
    st.integers(0, 10),
    st.none() | milliseconds,
    st.lists(st.integers(1, 16), max_size=4, unique=True).map(tuple),
)
backends = st.lists(
    st.builds(BackendRef, names, st.none() | subsets, st.integers(0, 1_000_000), ports), max_size=4
).map(tuple)


@st.composite
def routes(draw):
    name, kind = draw(names), draw(st.sampled_from(RouteKind))
    of_kind, retries_of_kind, timeouts_of_kind = {
        RouteKind.HTTP: (matches, retries, timeouts),
        RouteKind.GRPC: (call_matches, call_retries, timeouts),
        RouteKind.TCP: (st.just(RouteMatch()), st.none(), st.just(Timeouts())),
    }[kind]
    parents = draw(
        st.lists(
            st.builds(Parent, labels.map(lambda label: Name(name.namespace, label)), ports),
            min_size=1,
            max_size=3,
            unique=True,
        )
    )
    rules = draw(
        st.lists(
            st.builds(
                Rule, st.lists(of_kind, min_size=1, max_size=3).map(tuple), backends, timeouts_of_kind, retries_of_kind
            ),
            min_size=1,
            max_size=3,
        )
    )
    if kind is RouteKind.TCP:
        rules = [replace(rules[0], matches=(RouteMatch(),))]
    called = draw(st.lists(labels, max_size=len(rules), unique=True))
    rules[: len(called)] = [replace(rule, name=label) for rule, label in zip(rules, called, strict=False)]
    return Route(name, tuple(parents), tuple(rules), draw(st.integers(0, 4 * 10**15)) / 10**6, kind)


percents = st.integers(0, 100)
counts = st.integers(1, 1_000_000)
policies = st.builds(
    ServicePolicy,
    names,
    st.dictionaries(subsets, st.dictionaries(texts, texts, min_size=1, max_size=3), max_size=3),
    st.builds(OutlierDetection, st.integers(0, 100), milliseconds, percents, percents),
    st.builds(Limits, counts, counts, counts),
    st.builds(RetryBudgetPolicy, percents, st.integers(0, 100)),
    st.integers(1, 60_000).map(lambda ms: ms / 1000),
    st.none() | st.sampled_from(AppProtocol),
    st.none()
    | st.builds(TlsPolicy, st.sampled_from(["", "a.example"]), st.sampled_from(["", "/ca.pem"]))
    | st.just(TlsPolicy("x", "/ca.pem", "/c.pem", "/k.pem")),
    st.lists(st.sampled_from(["echo/1", "irc", "x-tunnel/2.0"]), max_size=2, unique=True).map(tuple),
)
resources = routes() | policies


@given(resources)
def test_what_these_strategies_make_is_sound(value):
    assert check(value) == []


@given(resources)
def test_a_resource_comes_back_from_its_bytes(value):
    resource = encode_resource(value)
    back = decode_resource(resource.kind, resource.body)
    assert back == resource
    assert back.value == value
    assert encode_resource(back.value).body == resource.body


@given(resources)
def test_a_resource_comes_back_from_its_document(value):
    (back,) = parse(to_yaml([value])).values
    assert back == (replace(value, created_unix_s=0.0) if isinstance(value, Route) else value)


@given(st.lists(resources, max_size=4, unique_by=lambda value: (type(value), value.name)))
def test_a_table_comes_back_from_its_push(values):
    snapshot = make_snapshot("epoch", 3, map(encode_resource, values))
    assert snapshot_from_push(push_from_snapshot(snapshot, "n", 1.0)) == snapshot


@given(st.lists(resources, max_size=4, unique_by=lambda value: (type(value), value.name)), st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_arrival(values, rng):
    shuffled = values[:]
    rng.shuffle(shuffled)
    one, other = (make_snapshot("e", 1, map(encode_resource, order)) for order in (values, shuffled))
    assert one == other


@given(st.sampled_from(Kind), st.binary(max_size=200))
def test_any_bytes_give_a_resource_or_our_error(kind, body):
    try:
        resource = decode_resource(kind, body)
    except InvalidError:
        return
    check(resource.value)  # says what is wrong, never raises


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(
    [
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "name",
        "namespace",
        "parentRefs",
        "hostnames",
        "rules",
        "matches",
        "path",
        "headers",
        "queryParams",
        "method",
        "backendRefs",
        "filters",
        "timeouts",
        "request",
        "backendRequest",
        "retry",
        "codes",
        "attempts",
        "backoff",
        "type",
        "value",
        "weight",
        "port",
        "subsets",
        "limits",
    ]
)
near_documents = st.recursive(
    json_values
    | st.sampled_from(["HTTPRoute", "ServicePolicy", "Service", "gateway.networking.k8s.io/v1", "10s", "/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=30,
)


@given(near_documents)
def test_anything_that_yaml_can_say_is_read_or_refused(document):
    whole = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "a"},
        "spec": document,
    }
    for raw in (document, whole, whole | {"kind": "ServicePolicy"}):
        try:
            values = read_documents([raw]).values
        except InvalidError:
            continue
        assert all(check(value) == [] for value in values)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    with pytest.raises(InvalidError):
        parse(text)


def test_nodes_of_nothing_are_absent():
    assert not Node(None, "", []).at("x").is_given
