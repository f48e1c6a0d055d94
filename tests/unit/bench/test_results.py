import json
from dataclasses import replace

import pytest

from tests.bench.cases import EDGE_CASES, HTTP_CASES, LOW_LOAD, PEER, TWIN, US
from tests.bench.http_case import judge
from tests.bench.idle_streams import judge as judge_idle_streams
from tests.bench.load import Run
from tests.bench.low_load import Round
from tests.bench.low_load import judge as judge_low_load
from tests.bench.machine import CpuTime
from tests.bench.plan import Plan
from tests.bench.report import as_json, block, markdown, verdict_words
from tests.bench.results import Bar, Result
from tests.bench.stats import Estimate

FULL = HTTP_CASES[0]
ROUNDS = 7


def runs(**cpu_us):
    return {
        name.replace("_", "-"): [
            Run(10_000, 2.0, 1000 + number, 3000, CpuTime(us * 0.006, us * 0.004)) for number in range(ROUNDS)
        ]
        for name, us in cpu_us.items()
    }


def low_load(p50, p99):
    """Rounds where a proxy adds that many microseconds to 50 and 100."""
    return {
        name: [Round(50 + p50.get(name, 0), 100 + p99.get(name, 0), 30.0, 20.0, 10.0)] * ROUNDS
        for name in ("direct", US, PEER, TWIN)
    }


@pytest.fixture
def full():
    return judge(FULL, runs(sidemesh=60, envoy=100, envoy_2=101, nginx=25))


def test_the_entry_has_the_form_that_was_agreed(full):
    entry = full.as_json()
    assert entry["name"] == "http1-full"
    assert entry["peer"] == "envoy"
    assert (entry["cpu_us"], entry["peer_cpu_us"]) == (60.0, 100.0)
    assert (entry["ratio"], entry["ci_low"], entry["ci_high"]) == (0.6, 0.6, 0.6)
    assert (entry["p50_ratio"], entry["p99_ratio"]) == (1.0, 1.0)
    assert entry["verdict"] == "met"
    assert entry["disturbed"] is False


def test_the_names_of_the_cases_are_those_that_were_agreed():
    names = {case.name for case in HTTP_CASES} | {LOW_LOAD.name}
    assert {case.name: case.bar for case in EDGE_CASES} == {"tls": 0.85, "websocket": 0.8}
    assert names == {
        *("http1-full", "http1-trace-100", "http1-log-100", "http1-1mib", "http1-64kib", "http1-new-connections"),
        "http1-low-load",
    }


def test_websocket_is_counted_by_message():
    found = judge(EDGE_CASES[1], runs(sidemesh=60, envoy=100, envoy_2=101))
    assert [bar.what for bar in found.bars] == ["CPU per message, ratio to Envoy"]
    assert found.verdict == "met"


def test_idle_streams_are_judged_by_all_memory_and_told_beside_envoys():
    held = {US: (60 << 20, 140 << 20), PEER: (50 << 20, 350 << 20)}
    entry = judge_idle_streams(held).as_json()
    assert (entry["name"], entry["verdict"], entry["rss_mib"], entry["peer_rss_mib"]) == (
        *("idle-streams", "met"),
        *(140.0, 350.0),
    )
    assert [bar["verdict"] for bar in entry["bars"]] == ["met", "reported", "reported"]
    assert entry["stream_kib"] == pytest.approx(80 * 1024 / 10_000)
    assert judge_idle_streams({US: (60 << 20, 160 << 20)}).verdict == "missed"


def test_a_missed_bar_says_by_how_much():
    missed = judge(FULL, runs(sidemesh=78, envoy=100, envoy_2=100))
    assert missed.verdict == "missed"
    assert verdict_words(missed) == "missed, CPU per request, ratio to Envoy is +20% from the bar"


def test_twins_that_differ_by_more_than_5_percent_disturb_the_case():
    assert not judge(FULL, runs(sidemesh=60, envoy=100, envoy_2=104)).is_disturbed
    disturbed = judge(FULL, runs(sidemesh=60, envoy=100, envoy_2=106))
    assert disturbed.is_disturbed
    assert disturbed.twin_difference == pytest.approx(0.06)
    assert "disturbed" in verdict_words(disturbed)


def test_a_case_without_its_peer_decides_nothing():
    alone = judge(FULL, runs(sidemesh=60))
    assert alone.verdict == "undecided"
    assert alone.as_json()["ratio"] is None


def test_low_load_is_judged_by_what_a_proxy_adds():
    found = judge_low_load(LOW_LOAD, low_load({US: 60, PEER: 100, TWIN: 100}, {US: 330, PEER: 300, TWIN: 300}))
    entry = found.as_json()
    assert (entry["p50_ratio"], entry["p99_ratio"], entry["verdict"]) == (0.6, 1.1, "met")
    assert not found.is_disturbed


def test_low_load_needs_both_of_its_bars():
    assert judge_low_load(LOW_LOAD, low_load({US: 60, PEER: 100}, {US: 390, PEER: 300})).verdict == "missed"


def test_low_load_allows_the_twins_p99_ten_percent():
    p50 = {US: 60, PEER: 100, TWIN: 104}
    assert not judge_low_load(LOW_LOAD, low_load(p50, {US: 1, PEER: 100, TWIN: 109})).is_disturbed
    assert judge_low_load(LOW_LOAD, low_load(p50, {US: 1, PEER: 100, TWIN: 111})).is_disturbed


def test_what_was_not_run_says_why_everywhere(full):
    absent = Result("memory", "resident memory", not_run="Consul is absent: make consul")
    assert absent.as_json()["verdict"] == "not run"
    assert "not run: Consul is absent" in block(absent)
    assert "- memory: Consul is absent: make consul" in markdown([full, absent], {}, Plan.full())


def test_the_file_is_json_without_nan(full):
    text = json.dumps(as_json([full], {"processor": "x"}, Plan.full()), allow_nan=False)
    assert json.loads(text)["cases"][0]["proxies"]["nginx"]["cpu_us"] == 25.0


def test_the_page_shows_figures_bars_and_that_a_run_was_quick(full):
    figure = Estimate(149.6, 120.0, 180.0)
    effect = Result("weight-to-effect", "a weight is set", bars=(Bar("until all", 200.0, figure, "met", " ms"),))
    page = markdown([full, effect], {"processor": "x"}, Plan.quick())
    assert "| http1-full | CPU per request, ratio to Envoy | 0.6 |  | ≤ 0.65 | met |" in page
    assert "| weight-to-effect | until all | 150 ms | 120–180 | ≤ 200 ms | met |" in page
    assert "A quick run" in page
    assert "A quick run" not in markdown([full], {}, Plan.full())


def test_others_have_fewer_rounds_and_their_ratios_are_to_envoys_of_the_same_ones():
    some = runs(sidemesh=60, envoy=100, envoy_2=101, nginx=25)
    late = [Run(10_000, 2.0, 1000, 3000, CpuTime(300 * 0.006, 300 * 0.004))] * ROUNDS
    some["envoy"], some["sidemesh"], some["envoy-2"] = (some[n] + late for n in ("envoy", "sidemesh", "envoy-2"))
    result = judge(FULL, some)
    assert result.row("nginx").ratio.median == pytest.approx(0.25)
    assert result.row("sidemesh").ratio.high > 0.9


def test_where_the_time_of_a_missed_case_goes_stands_in_both_files(full):
    missed = replace(full, profile="47 % python\n20 % kernel")
    assert "```\n47 % python\n20 % kernel\n```" in markdown([missed], {}, Plan.full())
    assert missed.as_json()["profile"] == ["47 % python", "20 % kernel"]
    assert "profile" not in full.as_json()
