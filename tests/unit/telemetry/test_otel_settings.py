import pytest

from mesh.model.errors import InvalidError
from mesh.telemetry.otel_settings import OtelSettings, read_otel


def test_without_variables_nothing_is_exported_and_nothing_is_overridden() -> None:
    assert read_otel({}) == OtelSettings()


@pytest.mark.parametrize(
    ("variables", "endpoint", "is_secure"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4318/base/"}, "https://c:4318/base/v1/traces", True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:1/x"}, "http://c:1/x", False),  # taken as it is
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces", False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "", False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "", False),
    ],
)
def test_the_endpoint_over_http(*, variables: dict[str, str], endpoint: str, is_secure: bool) -> None:
    settings = read_otel(variables)
    assert (settings.endpoint, settings.is_secure) == (endpoint, is_secure)


@pytest.mark.parametrize(
    ("given", "insecure", "endpoint", "is_secure"),
    [
        ("http://c:4317", "", "c:4317", False),
        ("https://c:4317", "true", "c:4317", True),
        ("c:4317", "", "c:4317", True),
        ("c:4317", "true", "c:4317", False),
    ],
)
def test_the_endpoint_over_grpc(*, given: str, insecure: str, endpoint: str, is_secure: bool) -> None:
    settings = read_otel(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": given,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_INSECURE": insecure,
        }
    )
    assert (settings.endpoint, settings.is_secure) == (endpoint, is_secure)


@pytest.mark.parametrize(
    ("sampler", "arg", "ratio", "follows"),
    [
        ("always_on", "", 1.0, False),
        ("always_off", "", 0.0, False),
        ("parentbased_always_on", "", 1.0, True),
        ("traceidratio", "0.25", 0.25, False),
        ("parentbased_traceidratio", "", 1.0, True),
    ],
)
def test_samplers(*, sampler: str, arg: str, ratio: float, follows: bool) -> None:
    settings = read_otel({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": arg})
    assert (settings.ratio, settings.follows_parent) == (ratio, follows)


def test_the_variable_of_traces_wins_over_the_general_one() -> None:
    settings = read_otel(
        {
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1, b=two%20words",
        }
    )
    assert settings.timeout_s == 2.5
    assert settings.headers == {"a": "1", "b": "two words"}


def test_a_batch_is_never_larger_than_the_queue() -> None:
    assert read_otel({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}).max_batch == 10


@pytest.mark.parametrize(
    ("text", "formats"), [("", None), ("tracecontext,baggage", ("tracecontext",)), ("b3,b3", ("b3",)), ("none", ())]
)
def test_propagators(text: str, formats: tuple[str, ...] | None) -> None:
    assert read_otel({"OTEL_PROPAGATORS": text}).formats == formats


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(InvalidError) as raised:
        read_otel(
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318",
                "OTEL_EXPORTER_OTLP_HEADERS": "novalue",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
                "OTEL_BSP_SCHEDULE_DELAY": "soon",
                "OTEL_TRACES_SAMPLER": "jaeger_remote",
                "OTEL_PROPAGATORS": "xray",
            }
        )
    assert {v.field for v in raised.value.violations} == {
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_TRACES_SAMPLER",
        "OTEL_PROPAGATORS",
    }


def test_a_wrong_header_is_named_without_its_secret() -> None:
    with pytest.raises(InvalidError) as raised:
        read_otel({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=se%0Acret"})
    assert "cret" not in str(raised.value.violations[0])
