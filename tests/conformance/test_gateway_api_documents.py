"""HTTPRoute documents as people have them: what is taken, and what is refused in which words.

Beside each row stands where the Gateway API says so (``apis/v1/httproute_types.go`` unless another source is named).
"""

import re

import pytest
import yaml

from mesh.model.errors import InvalidError
from mesh.model.gateway_api import parse, read_documents, to_document, to_yaml
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, Limits, OutlierDetection, RetryBudgetPolicy, ServicePolicy
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

REVIEWS = Name("default", "reviews")
SUBSET = "{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}"


def document(spec="", **metadata):
    """An HTTPRoute on reviews; ``spec`` is YAML in flow style that is added to its spec."""
    return yaml.safe_load(f"""
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {{name: reviews}}
        spec: {{parentRefs: [{{group: "", kind: Service, name: reviews}}]{", " + spec if spec else ""}}}
    """) | ({"metadata": {"name": "reviews", **metadata}} if metadata else {})


def read(spec="", **metadata):
    (value,) = read_documents([document(spec, **metadata)]).values
    return value


def rule(text):
    return read(f"rules: [{text}]").rules[0]


def match(text):
    return rule(f"{{matches: [{text}]}}").matches[0]


def problems(documents):
    with pytest.raises(InvalidError) as refused:
        read_documents(documents)
    return {violation.field: violation.message for violation in refused.value.violations}


# ------------------------------------------------------------------------------------------------------ what is taken


ANYTHING = RouteMatch(PathMatch(PathType.PREFIX, "/"))


@pytest.mark.parametrize(
    ("spec", "rules"),
    [
        ("", (Rule((ANYTHING,)),)),  # rules default to one that matches PathPrefix "/"
        ("rules: [{}]", (Rule((ANYTHING,)),)),  # matches default likewise
        ("rules: [{matches: []}]", (Rule((ANYTHING,)),)),
        ("rules: [{matches: [{}]}]", (Rule((ANYTHING,)),)),  # path defaults to PathPrefix "/"
        ("rules: [{matches: [{path: {value: /a}}]}]", (Rule((RouteMatch(PathMatch(PathType.PREFIX, "/a")),)),)),
        ("rules: [{filters: [], backendRefs: []}]", (Rule((ANYTHING,)),)),  # HTTPRouteNoBackendRefs: sound, answers 500
    ],
)
def test_defaults_are_the_gateway_apis(spec, rules):
    assert read(spec) == Route(REVIEWS, (Parent(REVIEWS),), rules)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{path: {type: Exact, value: /a}}", RouteMatch(PathMatch(PathType.EXACT, "/a"))),
        (
            "{path: {type: RegularExpression, value: '/a/[0-9]+'}}",
            RouteMatch(PathMatch(PathType.REGULAR_EXPRESSION, "/a/[0-9]+")),
        ),
        ("{headers: [{name: X-Canary, value: 'yes'}]}", RouteMatch(headers=(ValueMatch("x-canary", "yes"),))),
        (
            "{headers: [{type: RegularExpression, name: a, value: 'b.*'}]}",
            RouteMatch(headers=(ValueMatch("a", "b.*", ValueType.REGULAR_EXPRESSION),)),
        ),
        # Query parameter names are matched exactly, case and all (MeshHTTPRouteQueryParamMatching).
        ("{queryParams: [{name: A, value: b}]}", RouteMatch(query_params=(ValueMatch("A", "b"),))),
        ("{method: PATCH}", RouteMatch(method="PATCH")),
    ],
)
def test_every_match_type(text, expected):
    assert match(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{name: reviews}", BackendRef(REVIEWS, None, 1)),  # weight defaults to 1
        ("{name: reviews, weight: 0}", BackendRef(REVIEWS, None, 0)),
        (
            "{group: '', kind: Service, name: reviews, port: 80, weight: 1000000}",
            BackendRef(REVIEWS, None, 1_000_000, 80),
        ),
        ("{name: x, namespace: shop}", BackendRef(Name("shop", "x"))),
        (f"{{name: reviews, filters: [{SUBSET}]}}", BackendRef(REVIEWS, "v2")),
    ],
)
def test_every_form_of_a_backend(text, expected):
    assert rule(f"{{backendRefs: [{text}]}}").backend_refs == (expected,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{timeouts: {request: 10s, backendRequest: 500ms}}", Rule(timeouts=Timeouts(10, 0.5))),
        ("{timeouts: {request: 0s}}", Rule()),  # GEP-1742: zero switches it off
        ("{timeouts: {backendRequest: 1h1m1s1ms}}", Rule(timeouts=Timeouts(None, 3661.001))),
        ("{retry: {}}", Rule(retry=Retry((), 1))),  # GEP-1731
        ("{retry: {codes: [500, 503], attempts: 3, backoff: 100ms}}", Rule(retry=Retry((500, 503), 3, 0.1))),
        ("{name: api}", Rule(name="api")),  # MeshHTTPRouteNamedRule
    ],
)
def test_timeouts_retries_and_names(text, expected):
    assert rule(text) == expected


@pytest.mark.parametrize("group", ['group: "", ', "group: core, ", ""])
def test_a_parent_is_a_service_of_the_core_group(group):
    raw = document()
    raw["spec"]["parentRefs"] = yaml.safe_load(f"[{{{group}kind: Service, name: reviews, port: 80}}]")
    assert read_documents([raw]).values[0].parents == (Parent(REVIEWS, 80),)


def test_v1beta1_is_the_same_document():
    assert read_documents([document() | {"apiVersion": "gateway.networking.k8s.io/v1beta1"}]).values == (read(),)


def test_the_namespace_is_the_documents_own_else_the_readers():
    assert parse(yaml.safe_dump(document()), namespace="shop").values[0].name == Name("shop", "reviews")
    assert read(namespace="shop").parents[0].service == Name("shop", "reviews")


@pytest.mark.parametrize(
    "hostname", ["reviews", "Reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"]
)
def test_the_services_own_names_say_nothing_new(hostname):
    # MeshFrontendHostname: a mesh matches the service, not the Host header.
    assert read(f"hostnames: [{hostname}]") == read()


def test_what_kubectl_prints_is_taken():
    text = """
        apiVersion: v1
        kind: List
        metadata: {resourceVersion: ""}
        items:
        - apiVersion: gateway.networking.k8s.io/v1
          kind: HTTPRoute
          metadata:
            annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
            creationTimestamp: "2026-01-01T00:00:00Z"
            generation: 1
            managedFields: [{manager: kubectl}]
            name: reviews
            namespace: default
            resourceVersion: "1"
            uid: 8a1f
          spec:
            parentRefs: [{group: "", kind: Service, name: reviews, port: 9080}]
            rules: [{backendRefs: [{group: "", kind: Service, name: reviews, port: 9080, weight: 1}]}]
          status: {parents: []}
    """
    documents = parse(text)
    assert documents.notes == ()
    assert documents.values[0].rules[0].backend_refs == (BackendRef(REVIEWS, None, 1, 9080),)


def test_labels_and_annotations_are_taken_and_said_not_to_be_kept():
    documents = read_documents([document(labels={"app": "reviews"}, annotations={"team": "a"})])
    assert documents.notes == (
        "HTTPRoute/reviews: metadata.labels are not kept",
        "HTTPRoute/reviews: metadata.annotations are not kept",
    )


def test_a_service_policy():
    (policy,) = parse("""
        apiVersion: mesh.sidemesh.dev/v1
        kind: ServicePolicy
        metadata: {name: reviews}
        spec:
          subsets: [{name: canary, metadata: {version: v2, track: canary}}]
          outlierDetection: {consecutiveFailures: 3, baseEjection: 10s, maxEjectionPercent: 50, panicPercent: 0}
          limits: {maxConnections: 1, maxPendingRequests: 2, maxRequests: 3}
          retryBudget: {percent: 10, minPerSecond: 1}
          connectTimeout: 250ms
          appProtocol: kubernetes.io/h2c
    """).values
    assert policy == ServicePolicy(
        REVIEWS,
        {"canary": {"version": "v2", "track": "canary"}},
        OutlierDetection(3, 10, 50, 0),
        Limits(1, 2, 3),
        RetryBudgetPolicy(10, 1),
        0.25,
        AppProtocol.H2C,
    )


def test_a_policy_without_a_spec_has_every_default():
    text = "{apiVersion: mesh.sidemesh.dev/v1, kind: ServicePolicy, metadata: {name: reviews}}"
    assert parse(text).values == (ServicePolicy(REVIEWS),)


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        # Not built yet: refused, never ignored.
        ("rules: [{filters: [{type: RequestMirror}]}]", "rules[0].filters", "not built yet"),
        ("rules: [{filters: [{type: RequestHeaderModifier}]}]", "rules[0].filters", "not built yet"),
        ("rules: [{sessionPersistence: {sessionName: a}}]", "rules[0].sessionPersistence", "not built yet"),
        ("hostnames: [shop.example.com]", "hostnames[0]", "not built yet"),
        ("hostnames: ['*.reviews']", "hostnames[0]", "not built yet"),
        ("useDefaultGateways: All", "useDefaultGateways", "not built yet"),
        (
            "rules: [{backendRefs: [{name: a, filters: [{type: RequestHeaderModifier}]}]}]",
            "rules[0].backendRefs[0].filters[0].type",
            "ExtensionRef",
        ),
        # One form for a subset.
        (
            f"rules: [{{backendRefs: [{{name: a, filters: [{SUBSET.replace('mesh.sidemesh.dev', 'x')}]}}]}}]",
            "rules[0].backendRefs[0].filters[0].extensionRef.group",
            "mesh.sidemesh.dev",
        ),
        (
            f"rules: [{{backendRefs: [{{name: a, filters: [{SUBSET}, {SUBSET}]}}]}}]",
            "rules[0].backendRefs[0].filters",
            "more than one",
        ),
        # An invalid backend kind is InvalidKind in the API; here it is refused before it can answer 500.
        ("rules: [{backendRefs: [{name: a, kind: Bucket}]}]", "rules[0].backendRefs[0].kind", "Service"),
        # Keys nobody knows, with those that are known.
        ("rule: []", "rule", "accepted are parentRefs, hostnames, rules"),
        ("rules: [{match: []}]", "rules[0].match", "accepted are name, matches, backendRefs, timeouts, retry"),
        ("rules: [{matches: [{header: []}]}]", "rules[0].matches[0].header", "accepted are"),
        ("rules: [{matches: [{path: {prefix: /}}]}]", "rules[0].matches[0].path.prefix", "accepted are type, value"),
        ("rules: [{timeouts: {idle: 1s}}]", "rules[0].timeouts.idle", "accepted are request, backendRequest"),
        ("rules: [{retry: {conditions: 5xx}}]", "rules[0].retry.conditions", "accepted are codes, attempts, backoff"),
        # Types.
        ("rules: {}", "rules", "must be a list, not a mapping"),
        ("rules: [1]", "rules[0]", "must be a mapping"),
        ("rules: [{matches: [{method: [GET]}]}]", "rules[0].matches[0].method", "must be a string, not a list"),
        (
            "rules: [{matches: [{headers: [{name: a, value: 1}]}]}]",
            "rules[0].matches[0].headers[0].value",
            'quotes: "1"',
        ),
        ("rules: [{matches: [{headers: [{name: a}]}]}]", "rules[0].matches[0].headers[0].value", "must be given"),
        (
            "rules: [{backendRefs: [{name: a, weight: '1'}]}]",
            "rules[0].backendRefs[0].weight",
            "a whole number, not a string",
        ),
        ("rules: [{backendRefs: [{name: a, weight: true}]}]", "rules[0].backendRefs[0].weight", "not a boolean"),
        ("rules: [{backendRefs: [{name: a, weight: 1.5}]}]", "rules[0].backendRefs[0].weight", "not a number"),
        ("rules: [{backendRefs: [null]}]", "rules[0].backendRefs[0]", "must be given"),
        # Values.
        ("rules: []", "rules", "at least 1"),
        (
            "rules: [{matches: [{path: {type: Prefix}}]}]",
            "rules[0].matches[0].path.type",
            "Exact, PathPrefix, RegularExpression",
        ),
        ("rules: [{matches: [{path: {value: a}}]}]", "rules[0].matches[0].path.value", "does not start with '/'"),
        ("rules: [{matches: [{path: {value: /a//b}}]}]", "rules[0].matches[0].path.value", "'//'"),
        (
            "rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]",
            "rules[0].matches[0].path.value",
            "RE2",
        ),
        ("rules: [{matches: [{method: get}]}]", "rules[0].matches[0].method", "GET, HEAD"),
        ("rules: [{backendRefs: [{name: a, weight: 1000001}]}]", "rules[0].backendRefs[0].weight", "0 to 1000000"),
        ("rules: [{timeouts: {request: 1.5s}}]", "rules[0].timeouts.request", "GEP-2257"),
        ("rules: [{timeouts: {request: 10}}]", "rules[0].timeouts.request", "must be a string"),
        # GEP-1742: backendRequest must not be longer than request.
        (
            "rules: [{timeouts: {request: 1s, backendRequest: 2s}}]",
            "rules[0].timeouts.backendRequest",
            "longer than request",
        ),
        ("rules: [{retry: {codes: [200]}}]", "rules[0].retry.codes[0]", "400 to 599"),
        ("rules: [{retry: {attempts: 100}}]", "rules[0].retry.attempts", "0 to 10"),
        ("rules: [{name: a}, {name: a}]", "rules[1].name", "another rule"),
    ],
)
def test_what_is_refused_and_in_which_words(spec, field, words):
    told = problems([document(spec)])
    assert words in told[f"HTTPRoute/reviews.{field}"]


@pytest.mark.parametrize(
    ("parent", "field", "words"),
    [
        # kind defaults to Gateway in the API, and gateways are not what a mesh has.
        ("{name: reviews}", "parentRefs[0].kind", "must be Service"),
        ("{kind: Gateway, group: gateway.networking.k8s.io, name: x}", "parentRefs[0].kind", "must be Service"),
        ("{kind: Service, group: x, name: reviews}", "parentRefs[0].group", 'group ""'),
        ("{kind: Service, name: reviews, sectionName: http}", "parentRefs[0].sectionName", "not built yet"),
        ("{kind: Service, name: reviews, namespace: shop}", "parentRefs[0].namespace", "consumer routes"),
        ("{kind: Service}", "parentRefs[0].name", "must be given"),
        ("{kind: Service, name: reviews, port: 0}", "parentRefs[0].port", "1 to 65535"),
    ],
)
def test_parents_that_are_refused(parent, field, words):
    raw = document()
    raw["spec"]["parentRefs"] = yaml.safe_load(f"[{parent}]")
    assert words in problems([raw])[f"HTTPRoute/reviews.{field}"]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"apiVersion": "gateway.networking.k8s.io/v1alpha2"}, "HTTPRoute/reviews.apiVersion", "v1 or"),
        ({"kind": "TLSRoute"}, "kind", "HTTPRoute, GRPCRoute, TCPRoute, ServicePolicy"),
        ({"metadata": None}, "metadata", "must be given"),
        ({"metadata": {"name": "a", "ownerReferences": [1]}}, "HTTPRoute/a.metadata.ownerReferences", "not known"),
        ({"metadata": {"name": "Reviews"}}, "HTTPRoute/Reviews.metadata.name", "DNS label"),
        ({"spec": None}, "HTTPRoute/reviews.spec", "must be a mapping"),
        ({"data": {}}, "HTTPRoute/reviews.data", "accepted are apiVersion, kind, metadata, spec, status"),
    ],
)
def test_documents_that_are_refused(change, field, words):
    assert words in problems([document() | change])[field]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("{subset: []}", "subset"),
        ("{subsets: [{name: a, metadata: {v: 1}}]}", "subsets[0].metadata.v"),
        ("{subsets: [{name: a, metadata: {v: x}}, {name: a, metadata: {v: y}}]}", "subsets[1].name"),
        ("{subsets: [{name: a}]}", "subsets[a].metadata"),
        ("{outlierDetection: {maxEjectionPercent: 101}}", "outlierDetection.maxEjectionPercent"),
        ("{limits: {maxRetries: 3}}", "limits.maxRetries"),
        ("{connectTimeout: 5}", "connectTimeout"),
        ("{appProtocol: gopher}", "appProtocol"),
        ("{upgrades: [h2c]}", "upgrades[0]"),
        ("{tls: {caFile: ca.pem}}", "tls.caFile"),
        ("{tls: {certificateFile: /c.pem}}", "tls"),
        ("{tls: {serverName: 'a b'}}", "tls.serverName"),
        ("[]", "spec"),
    ],
)
def test_policies_that_are_refused(spec, field):
    text = f"{{apiVersion: mesh.sidemesh.dev/v1, kind: ServicePolicy, metadata: {{name: reviews}}, spec: {spec}}}"
    assert f"ServicePolicy/reviews.{field}" in problems([yaml.safe_load(text)])


def test_all_problems_of_all_documents_stand_in_one_report():
    told = problems(
        [
            document("rules: [{matches: [{method: get}]}]"),
            {"kind": "Pod"},
            document("hostnames: [x], bogus: 1", name="other"),
            document(name="reviews"),
        ]
    )
    assert set(told) == {
        "HTTPRoute/reviews.rules[0].matches[0].method",
        "documents[1].kind",
        "HTTPRoute/other.hostnames[0]",
        "HTTPRoute/other.bogus",
        "HTTPRoute/reviews",  # said of the fourth: it stands there more than once
    }


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "22:22", "1_000", "2026-01-01", "0x1f", "017", "y", ".inf"])
def test_words_that_older_yaml_reads_as_something_else_are_words(word):
    assert match(f"{{headers: [{{name: a, value: '{word}'}}]}}") == RouteMatch(headers=(ValueMatch("a", word),))
    (route,) = parse(
        to_yaml([read()]).replace("value: /", f"value: /\n      headers: [{{name: a, value: {word}}}]")
    ).values
    assert route.rules[0].matches[0].headers == (ValueMatch("a", word),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no document"),
        ("---\n---\n", "no document"),
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
        ("&a [*a]", "must be a mapping"),
        ("just text", "must be a mapping"),
    ],
)
def test_texts_that_are_no_documents(text, words):
    with pytest.raises(InvalidError, match=words):
        parse(text)


# -------------------------------------------------------------------------------------------------------- and out again


def test_a_route_is_written_as_the_gateway_api_writes_it():
    route = Route(
        REVIEWS,
        (Parent(REVIEWS, 80),),
        (
            Rule(
                (RouteMatch(method="GET"),), (BackendRef(REVIEWS, "v2", 10),), Timeouts(1.5), Retry((503,), 2, 0.1), "a"
            ),
        ),
        1_767_225_600.0,
    )
    assert to_document(route) == yaml.safe_load(f"""
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {{name: reviews, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}}
        spec:
          parentRefs: [{{group: "", kind: Service, name: reviews, port: 80}}]
          rules:
          - name: a
            matches: [{{path: {{type: PathPrefix, value: /}}, method: GET}}]
            backendRefs: [{{name: reviews, weight: 10, filters: [{SUBSET}]}}]
            timeouts: {{request: 1s500ms}}
            retry: {{codes: [503], attempts: 2, backoff: 100ms}}
    """)


@pytest.mark.parametrize(
    "subset", ["1e3", "0e0", "0.1", "1", "true", "null", "yes", "0o17", "017", "1.2.3", "2026-01-01"]
)
def test_words_that_some_yaml_reads_as_something_else_are_quoted(subset):
    text = to_yaml([Route(REVIEWS, (Parent(REVIEWS),), (Rule(backend_refs=(BackendRef(REVIEWS, subset),)),))])
    assert parse(text).values[0].rules[0].backend_refs[0].subset == subset
    if subset != "1.2.3":
        assert re.search(f"""name: ['"]{re.escape(subset)}['"]$""", text, re.MULTILINE) or subset == "017"


def test_what_is_written_is_read_back_from_one_text():
    values = (read(), ServicePolicy(REVIEWS, {"v2": {"version": "2"}}))
    assert parse(to_yaml(values)).values == values


# --- GRPCRoute ------------------------------------------------------------------------------------------------------

GRPC_ROUTE = """
    apiVersion: gateway.networking.k8s.io/v1
    kind: GRPCRoute
    metadata: {name: cart}
    spec:
      parentRefs: [{kind: Service, group: "", name: reviews}]
      rules:
      - matches:
        - method: {service: shop.Cart, method: Add}
          headers: [{name: User, value: ada}]
        - method: {type: RegularExpression, service: "shop.*"}
        backendRefs: [{name: reviews, weight: 3}]
        timeouts: {request: 2s}
        retry: {codes: [UNAVAILABLE, 8], attempts: 3}
      - {}
"""


def test_a_grpc_route():
    (route,) = parse(GRPC_ROUTE).values
    first = Rule(
        (
            RouteMatch(headers=(ValueMatch("user", "ada"),), grpc=MethodMatch("shop.Cart", "Add")),
            RouteMatch(grpc=MethodMatch("shop.*", type=ValueType.REGULAR_EXPRESSION)),
        ),
        (BackendRef(REVIEWS, weight=3),),
        Timeouts(2.0),
        Retry((), 3, None, (14, 8)),
    )
    rest = Rule((RouteMatch(grpc=MethodMatch()),))
    assert route == Route(Name("default", "cart"), (Parent(REVIEWS),), (first, rest), kind=RouteKind.GRPC)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("service: shop.Cart, method: Add", "service: shop/Cart", "rules[0].matches[0].method.service"),
        ("service: shop.Cart, method: Add", "method: 1st", "rules[0].matches[0].method.method"),
        ("{service: shop.Cart, method: Add}", "{}", "rules[0].matches[0].method"),
        ("{service: shop.Cart, method: Add}", "POST", "rules[0].matches[0].method"),
        ("codes: [UNAVAILABLE, 8]", "codes: [503]", "rules[0].retry.codes[0]"),
        ("codes: [UNAVAILABLE, 8]", "codes: [unavailable]", "rules[0].retry.codes[0]"),
        ("codes: [UNAVAILABLE, 8]", "codes: [14, UNAVAILABLE]", "rules[0].retry.codes[1]"),
        ('type: RegularExpression, service: "shop.*"', "type: RegularExpression, service: '('", "rules[0].matches[1].method.service"),
        ("      - {}", "      - matches: [{path: {value: /x}}]", "rules[1].matches[0].path"),
    ],
)  # fmt: skip
def test_what_a_grpc_route_may_not_say(old, new, field):
    with pytest.raises(InvalidError) as wrong:
        parse(GRPC_ROUTE.replace(old, new))
    assert f"GRPCRoute/cart.{field}" in [violation.field for violation in wrong.value.violations]


def test_everything_wrong_is_told_at_once_and_nothing_twice():
    text = """
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: pay}
        spec:
          parentRefs: [{kind: Service, group: "", name: pay}]
          rules:
          - timeouts: {request: 5x}
            retry: {codes: [99], attempts: -1}
            backendRefs: [{name: pay, weight: -1}]
    """
    with pytest.raises(InvalidError) as wrong:
        parse(text)
    fields = [violation.field.removeprefix("HTTPRoute/pay.rules[0].") for violation in wrong.value.violations]
    assert sorted(fields) == ["backendRefs[0].weight", "retry.attempts", "retry.codes[0]", "timeouts.request"]


# --- TCPRoute -------------------------------------------------------------------------------------------------------

TCP_ROUTE = """
    apiVersion: gateway.networking.k8s.io/v1alpha2
    kind: TCPRoute
    metadata: {name: db}
    spec:
      parentRefs: [{kind: Service, group: "", name: reviews}]
      rules: [{backendRefs: [{name: reviews, weight: 3}, {name: other}]}]
"""


def test_a_tcp_route():
    (route,) = parse(TCP_ROUTE).values
    rule = Rule(backend_refs=(BackendRef(REVIEWS, weight=3), BackendRef(Name("default", "other"))))
    assert route == Route(Name("default", "db"), (Parent(REVIEWS),), (rule,), kind=RouteKind.TCP)


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ("[{}, {}]", "rules"),
        ("[{matches: [{}], backendRefs: []}]", "rules[0].matches"),
        ("[{timeouts: {request: 1s}}]", "rules[0].timeouts"),
    ],
)
def test_what_a_tcp_route_may_not_say(rules, field):
    with pytest.raises(InvalidError) as wrong:
        parse(TCP_ROUTE.replace("[{backendRefs: [{name: reviews, weight: 3}, {name: other}]}]", rules))
    assert f"TCPRoute/db.{field}" in [violation.field for violation in wrong.value.violations]
