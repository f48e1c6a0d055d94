from prometheus_client.parser import text_string_to_metric_families

from mesh.model.name import Name
from mesh.telemetry.exposition import OTHER_LABELS, family, request_families
from mesh.telemetry.metrics import CellBudget, RequestSeries
from mesh.telemetry.names import ENDPOINTS, UPSTREAM_ACTIVE
from proxy.recorder import MAX_SERIES, Recorder

SHOP = Name("default", "shop")


def test_cells_beyond_the_limit_are_counted_as_other() -> None:
    budget = CellBudget(limit=3)
    first, second = RequestSeries({"a": "1"}, budget), RequestSeries({"a": "2"}, budget)
    for status in (200, 201, 202):
        first.record(status, "", 1.0, 0, 0)
    assert not budget.is_exhausted
    second.record(200, "", 1.0, 0, 0)
    second.record(500, "UC", 1.0, 0, 0)
    first.record(200, "", 1.0, 0, 0)
    assert budget.is_exhausted
    assert budget.other is not None
    assert budget.other.count == 2
    assert first.cells[200, ""].count == 2


def test_services_beyond_the_limit_are_counted_as_other_and_make_no_series() -> None:
    recorder = Recorder(SHOP)
    for number in range(MAX_SERIES + 10):
        recorder.series_for(Name("(egress)", f"host{number}:443"), None).record(200, "", 1.0, 0, 0)
    assert len(recorder.series) == MAX_SERIES
    assert recorder.is_capped
    assert recorder.budget.other is not None
    assert recorder.budget.other.count == 10
    assert len(recorder.cells()) == MAX_SERIES


def test_the_other_series_reads_like_any() -> None:
    budget = CellBudget(limit=0)
    RequestSeries({}, budget).record(200, "", 1.0, 0, 0)
    assert budget.other is not None
    text = "".join(request_families([(OTHER_LABELS, budget.other)]))
    (requests, *_) = text_string_to_metric_families(text)
    assert {s.labels["destination_service"] for s in requests.samples} == {"other"}


def test_a_family_of_too_many_services_ends_in_other() -> None:
    text = family(UPSTREAM_ACTIVE, [((f"s{n}",), 1) for n in range(2005)])
    (found,) = text_string_to_metric_families(text)
    assert len(found.samples) == 2001
    assert found.samples[-1].labels == {"service": "other"}
    assert found.samples[-1].value == 5


def test_label_values_are_escaped() -> None:
    hostile = 'a"b\\c\nd'
    (found,) = text_string_to_metric_families(family(ENDPOINTS, [((hostile, "known"), 1)]))
    assert found.samples[0].labels["service"] == hostile
    series = RequestSeries({"source": hostile})
    series.record(200, "", 1.0, 0, 0)
    (requests, *_) = text_string_to_metric_families("".join(request_families([(series.text, series.cells[200, ""])])))
    assert requests.samples[0].labels["source"] == hostile


def test_both_ends_of_a_call_name_the_called_service_alike() -> None:
    source = Recorder(SHOP, version="v1").series_for(Name("default", "pay"), "v2").labels
    target = Recorder(Name("default", "pay"), version="v2").series_for(Name("(local)", "pay"), None).labels
    for label, value in target.items():
        if label.startswith("destination_"):
            assert source[label] == value, label
    assert (source["reporter"], target["reporter"]) == ("source", "destination")
    assert source["source_workload"] == "shop-v1"
    assert target["source_workload"] == "unknown"
