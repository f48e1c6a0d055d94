"""The catalog over a source that says what the test tells it to."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from mesh.discovery.base import Contact, SourceError
from mesh.discovery.catalog import Catalog, CatalogSettings, Resolution, ServedEndpoints, Unresolved, Why
from mesh.model.name import Name
from tests.support.process import until
from tests.unit.discovery.fakes import FakeSource, endpoints, name

REVIEWS, RATINGS, NOBODY = name("reviews"), name("ratings"), name("nobody")
Make = Callable[..., Catalog]


@pytest.fixture
def source() -> FakeSource:
    return FakeSource([REVIEWS, RATINGS])


@pytest.fixture
async def make(source: FakeSource) -> AsyncIterator[Make]:
    made: list[Catalog] = []

    def catalog(**settings: float) -> Catalog:
        made.append(Catalog(source, CatalogSettings(**settings)))  # type: ignore[arg-type]
        return made[-1]

    yield catalog
    source.gate.set()
    for each in made:
        await each.close()
    assert source.watches == {}


def ids(answer: Resolution | None) -> str:
    assert isinstance(answer, ServedEndpoints), answer
    return " ".join(each.id for each in answer.usable)


def why(answer: Resolution) -> Why:
    assert isinstance(answer, Unresolved), answer
    return answer.why


async def test_a_declared_service_is_watched_and_answered_from_memory(source: FakeSource, make: Make) -> None:
    catalog = make()
    catalog.declare([REVIEWS])
    assert catalog.get(REVIEWS) is None
    source.say(REVIEWS, "a", contact=Contact.RESUMED)
    assert ids(catalog.get(REVIEWS)) == "a"
    source.say(REVIEWS, "a", "b")
    assert ids(catalog.get(REVIEWS)) == "a b"
    assert source.lookups == []


async def test_a_declared_service_that_does_not_exist_is_served_as_empty_not_unknown(
    source: FakeSource, make: Make
) -> None:
    catalog = make()
    catalog.declare([NOBODY])
    source.say(NOBODY)
    assert ids(catalog.get(NOBODY)) == ""
    assert ids(await catalog.resolve(NOBODY)) == ""


async def test_a_request_before_the_first_observation_waits_for_it(source: FakeSource, make: Make) -> None:
    catalog = make()
    catalog.declare([REVIEWS])
    waiting = asyncio.gather(catalog.resolve(REVIEWS), catalog.resolve(REVIEWS))
    await asyncio.sleep(0)
    source.say(REVIEWS, "a")
    assert [ids(each) for each in await waiting] == ["a", "a"]
    assert source.lookups == []


async def test_a_request_before_the_first_observation_of_a_dead_source_is_told_so_at_once(
    source: FakeSource, make: Make
) -> None:
    catalog = make()
    catalog.declare([REVIEWS])
    source.fail(REVIEWS)
    assert why(await catalog.resolve(REVIEWS)) is Why.UNAVAILABLE


async def test_a_watch_that_stays_silent_is_waited_for_only_so_long(make: Make) -> None:
    catalog = make(lookup_timeout_s=0.01)
    catalog.declare([REVIEWS])
    assert why(await catalog.resolve(REVIEWS)) is Why.UNAVAILABLE


async def test_the_first_request_looks_a_service_up_and_begins_a_watch(source: FakeSource, make: Make) -> None:
    catalog = make()
    assert catalog.get(REVIEWS) is None
    assert ids(await catalog.resolve(REVIEWS)) == "a b"
    assert ids(catalog.get(REVIEWS)) == "a b"
    source.say(REVIEWS, "c", contact=Contact.RESUMED)
    assert ids(catalog.get(REVIEWS)) == "a b c"  # a and b have their grace time
    assert source.lookups == [REVIEWS]


async def test_concurrent_first_requests_share_one_lookup(source: FakeSource, make: Make) -> None:
    catalog = make()
    source.gate.clear()
    first = asyncio.gather(*(catalog.resolve(REVIEWS) for _ in range(50)))
    await until(lambda: source.lookups, what="the lookup")
    source.gate.set()
    assert {ids(each) for each in await first} == {"a b"}
    assert source.lookups == [REVIEWS]


async def test_a_caller_that_gives_up_takes_the_lookup_from_nobody(source: FakeSource, make: Make) -> None:
    catalog = make()
    source.gate.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await catalog.resolve(REVIEWS)
    rest = asyncio.gather(catalog.resolve(REVIEWS))
    await asyncio.sleep(0)
    source.gate.set()
    assert ids((await rest)[0]) == "a b"
    assert source.lookups == [REVIEWS]


async def test_an_unknown_name_is_asked_once_in_five_seconds_and_never_watched(source: FakeSource, make: Make) -> None:
    catalog = make()
    for _ in range(3):
        assert why(await catalog.resolve(NOBODY)) is Why.UNKNOWN
    assert source.lookups == [NOBODY]
    assert source.watches == {}


async def test_an_unknown_name_is_asked_again_when_the_negative_answer_is_old(source: FakeSource, make: Make) -> None:
    catalog = make(negative_s=0.0)
    assert why(await catalog.resolve(NOBODY)) is Why.UNKNOWN
    source.known.add(NOBODY)
    assert ids(await catalog.resolve(NOBODY)) == "a b"


async def test_a_name_that_is_declared_leaves_the_negative_cache(source: FakeSource, make: Make) -> None:
    catalog = make()
    await catalog.resolve(NOBODY)
    catalog.declare([NOBODY])
    source.say(NOBODY, "n")
    assert ids(await catalog.resolve(NOBODY)) == "n"


@pytest.mark.parametrize("text", ["", "a.b", "UPPER", "-a", "a" * 64, "ü", "a b", "a/../b", "x\0"])
async def test_what_is_no_dns_label_is_refused_unasked(source: FakeSource, make: Make, text: str) -> None:
    catalog = make()
    assert why(await catalog.resolve(Name("default", text))) is Why.UNKNOWN
    assert why(await catalog.resolve(Name(text, "reviews"))) is Why.UNKNOWN
    catalog.declare([Name("default", text)])
    assert source.lookups == []
    assert source.watches == {}
    assert catalog.counts["negative"] == 0


async def test_a_silent_source_is_another_answer_than_an_unknown_service(source: FakeSource, make: Make) -> None:
    catalog = make(lookup_timeout_s=0.01)
    source.error = SourceError("connection refused")
    answer = await catalog.resolve(REVIEWS)
    assert answer == Unresolved(Why.UNAVAILABLE, "connection refused")
    source.gate.clear()
    answer = await catalog.resolve(REVIEWS)
    assert why(answer) is Why.UNAVAILABLE
    source.gate.set()
    source.error = None
    assert ids(await catalog.resolve(REVIEWS)) == "a b"  # and nothing of it was remembered


async def test_a_flood_of_names_leaves_lookups_watches_and_memory_flat(source: FakeSource, make: Make) -> None:
    catalog = make(max_negative=100)
    source.gate.clear()
    flood = [asyncio.gather(*(catalog.resolve(name(f"x{n}-{turn}")) for n in range(500))) for turn in range(4)]
    await until(lambda: source.running == 16, what="16 lookups to run")
    assert catalog.counts["lookups"] == 16
    source.gate.set()
    answers = [why(each) for turn in flood for each in await turn]
    assert answers.count(Why.UNKNOWN) == 16
    assert answers.count(Why.UNAVAILABLE) == 4 * 500 - 16
    for n in range(300):
        assert why(await catalog.resolve(name(f"y{n}"))) is Why.UNKNOWN
    assert source.most_running == 16
    assert catalog.counts == {"declared": 0, "on_demand": 0, "lookups": 0, "negative": 100}


async def test_known_services_are_answered_in_the_middle_of_a_flood(source: FakeSource, make: Make) -> None:
    catalog = make()
    assert ids(await catalog.resolve(REVIEWS)) == "a b"
    source.gate.clear()
    flood = asyncio.gather(*(catalog.resolve(name(f"x{n}")) for n in range(100)))
    await asyncio.sleep(0)
    assert ids(catalog.get(REVIEWS)) == "a b"
    source.gate.set()
    await flood


async def test_an_idle_watch_on_demand_is_dropped_and_a_used_or_declared_one_is_not(
    source: FakeSource, make: Make
) -> None:
    catalog = make(idle_s=0.05, sweep_s=0.01)
    await catalog.start()
    catalog.declare([name("declared")])
    await catalog.resolve(REVIEWS)
    await catalog.resolve(RATINGS)

    def ratings_is_dropped() -> bool:
        catalog.get(REVIEWS)
        return RATINGS not in source.watches

    await until(ratings_is_dropped, what="ratings to be dropped")
    assert set(source.watches) == {name("declared"), REVIEWS}
    assert catalog.get(RATINGS) is None
    assert ids(await catalog.resolve(RATINGS)) == "a b"


async def test_above_the_limit_the_watch_unused_for_longest_makes_room(source: FakeSource, make: Make) -> None:
    catalog = make(max_on_demand=3)
    services = [name(f"s{n}") for n in range(4)]
    source.known |= set(services)
    for service in services[:3]:
        await catalog.resolve(service)
    catalog.get(services[0])
    catalog._stamp(catalog._now() + 1)
    await catalog.resolve(services[3])
    await until(lambda: len(source.watches) == 3, what="one watch to end")
    assert services[1] not in source.watches
    assert catalog.counts["on_demand"] == 3


async def test_a_service_that_is_no_longer_declared_becomes_one_on_demand(source: FakeSource, make: Make) -> None:
    catalog = make(idle_s=0.02, sweep_s=0.01)
    await catalog.start()
    catalog.declare([REVIEWS])
    source.say(REVIEWS, "a")
    catalog.declare([RATINGS])
    assert ids(catalog.get(REVIEWS)) == "a"
    assert catalog.counts == {"declared": 1, "on_demand": 1, "lookups": 0, "negative": 0}
    await until(lambda: set(source.watches) == {RATINGS}, what="reviews to be dropped")


async def test_declaring_a_service_again_keeps_its_watch(source: FakeSource, make: Make) -> None:
    catalog = make()
    catalog.declare([REVIEWS])
    watch = source.watches[REVIEWS]
    catalog.declare([REVIEWS, RATINGS])
    assert source.watches[REVIEWS] is watch


async def test_subscribers_hear_each_change_of_what_is_served_and_nothing_else(source: FakeSource, make: Make) -> None:
    catalog = make()
    heard: list[tuple[str, str]] = []
    end = catalog.subscribe(lambda service, served: heard.append((service.name, ids(served))))
    catalog.declare([REVIEWS])
    source.say(REVIEWS, "a")
    source.say(REVIEWS, "a")
    source.fail(REVIEWS)
    source.say(REVIEWS, "a", "b", contact=Contact.RESUMED)
    source.say(REVIEWS, "a")
    assert heard == [("reviews", "a"), ("reviews", "a b"), ("reviews", "a")]
    end()
    end()
    source.say(REVIEWS, "a", "c")
    assert len(heard) == 3


async def test_the_grace_time_ends_by_itself(source: FakeSource, make: Make) -> None:
    catalog = make(grace_s=0.03)
    catalog.declare([REVIEWS])
    source.say(REVIEWS, "a")
    source.say(REVIEWS)
    assert ids(catalog.get(REVIEWS)) == "a"
    assert catalog.report()[0].missing == 1
    await until(lambda: ids(catalog.get(REVIEWS)) == "", what="the grace time to end")


async def test_a_failed_connection_drops_a_missing_endpoint_at_once(source: FakeSource, make: Make) -> None:
    catalog = make()
    catalog.declare([REVIEWS])
    source.say(REVIEWS, "a", "b")
    source.say(REVIEWS, "a", contact=Contact.RESUMED)
    catalog.connect_failed(REVIEWS, "a")
    catalog.connect_failed(REVIEWS, "b")
    catalog.connect_failed(NOBODY, "b")
    assert ids(catalog.get(REVIEWS)) == "a"


async def test_the_subsets_of_policies_hold_back_a_removal(source: FakeSource, make: Make) -> None:
    catalog = make()
    catalog.declare([REVIEWS], {REVIEWS: {"all": {"version": "v1"}}})
    source.say(REVIEWS, "a", "b")
    source.say(REVIEWS, "a")
    assert ids(catalog.get(REVIEWS)) == "a"
    source.say(REVIEWS)
    assert ids(catalog.get(REVIEWS)) == "a"


async def test_the_report_tells_contact_age_and_error(
    source: FakeSource, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = make()
    catalog.declare([REVIEWS, RATINGS])
    assert [(each.contact, each.age_s) for each in catalog.report()] == [(None, None), (None, None)]
    source.say(REVIEWS, "a", contact=Contact.RESUMED)
    source.say(RATINGS, "a", contact=Contact.RESUMED)
    with caplog.at_level(logging.INFO):
        source.fail(REVIEWS)
        source.fail(RATINGS)
        source.fail(RATINGS)
    assert caplog.text.count("the source is down") == 1
    await until(lambda: all((each.age_s or 0) > 0 for each in catalog.report()), what="the age to grow")
    ratings, reviews = catalog.report()
    assert (ratings.service, ratings.source, ratings.is_declared) == (RATINGS, "fake", True)
    assert reviews.error == "the source is down"
    with caplog.at_level(logging.INFO):
        source.say(REVIEWS, "a", contact=Contact.RESUMED)
    assert "in contact again" in caplog.text
    assert (catalog.report()[1].age_s, catalog.report()[1].error) == (0, None)


async def test_resolve_soon_calls_back_with_the_answer(make: Make) -> None:
    catalog = make()
    answers: list[Resolution] = []
    catalog.resolve_soon(REVIEWS, answers.append)
    catalog.resolve_soon(NOBODY, answers.append)
    assert answers == []
    await until(lambda: len(answers) == 2, what="both answers")
    assert ids(next(each for each in answers if isinstance(each, ServedEndpoints))) == "a b"


async def test_who_waits_while_the_catalog_closes_gets_an_answer(source: FakeSource, make: Make) -> None:
    catalog = make()
    catalog.declare([RATINGS])
    source.gate.clear()
    answers: list[Resolution] = []
    catalog.resolve_soon(REVIEWS, answers.append)
    waiting = asyncio.gather(catalog.resolve(REVIEWS), catalog.resolve(RATINGS))
    await asyncio.sleep(0)
    await catalog.close()
    assert [why(each) for each in await waiting] == [Why.UNAVAILABLE, Why.UNAVAILABLE]
    await until(lambda: answers, what="the callback")
    assert why(answers[0]) is Why.UNAVAILABLE
    assert why(await catalog.resolve(REVIEWS)) is Why.UNAVAILABLE
    assert source.watches == {}


async def test_what_a_watch_says_after_its_service_was_dropped_is_not_heard(source: FakeSource, make: Make) -> None:
    catalog = make(idle_s=0.01, sweep_s=0.01)
    await catalog.start()
    await catalog.resolve(REVIEWS)
    watch = source.watches[REVIEWS]
    await until(lambda: not source.watches, what="the watch to end")
    source.watches[REVIEWS] = watch
    source.say(REVIEWS, "z")
    source.fail(REVIEWS)
    del source.watches[REVIEWS]
    assert catalog.get(REVIEWS) is None


# --- what an earlier process knew ---


async def test_what_is_remembered_of_a_declared_service_is_served_at_once_and_told(
    source: FakeSource, make: Make
) -> None:
    catalog = make()
    told: list[str] = []
    catalog.subscribe(lambda _, served: told.append(ids(served)))
    catalog.remember({REVIEWS: endpoints("a", "b")}, 60)
    catalog.declare([REVIEWS])
    source.fail(REVIEWS)
    assert ids(await catalog.resolve(REVIEWS)) == ids(catalog.get(REVIEWS)) == "a b"
    (report,) = catalog.report()
    assert report.age_s == pytest.approx(60, abs=5)
    assert report.error == "the source is down"
    source.say(REVIEWS, "a")  # first word after a break: b has its grace time
    assert ids(catalog.get(REVIEWS)) == "a b"
    catalog.connect_failed(REVIEWS, "b")
    assert told == ["a b", "a b", "a"]


@pytest.mark.parametrize("trouble", ["down", "silent", "busy", "empty"])
async def test_what_is_remembered_of_another_service_is_served_where_the_source_does_not_tell(
    source: FakeSource, make: Make, trouble: str
) -> None:
    catalog = make(lookup_timeout_s=0.01, max_lookups=0 if trouble == "busy" else 1)
    if trouble == "down":
        source.error = SourceError("the source is down")
    elif trouble == "silent":
        source.gate.clear()
    source.known.clear()
    catalog.remember({REVIEWS: endpoints("a")}, 0)
    assert ids(await catalog.resolve(REVIEWS)) == "a"
    assert isinstance(await catalog.resolve(RATINGS), Unresolved)
    assert list(source.watches) == [REVIEWS]  # followed from now on
    source.say(REVIEWS, "b", contact=Contact.RESUMED)
    catalog.connect_failed(REVIEWS, "a")
    assert ids(catalog.get(REVIEWS)) == "b"


async def test_a_source_that_answers_is_believed_with_the_grace_time_of_what_it_does_not_list(
    source: FakeSource, make: Make
) -> None:
    catalog = make(grace_s=0.02)
    catalog.remember({REVIEWS: endpoints("z")}, 0)
    assert ids(await catalog.resolve(REVIEWS)) == "a b z"
    await until(lambda: ids(catalog.get(REVIEWS)) == "a b", what="z to be gone")


async def test_knowledge_is_what_is_served_and_what_is_remembered_and_was_not_asked_for(
    source: FakeSource, make: Make
) -> None:
    catalog = make(idle_s=0.05, sweep_s=0.01)
    await catalog.start()
    catalog.remember({REVIEWS: endpoints("old"), RATINGS: endpoints("r")}, 0)
    catalog.declare([REVIEWS, NOBODY])
    source.say(NOBODY)
    source.say(REVIEWS, "a", contact=Contact.RESUMED)
    catalog.connect_failed(REVIEWS, "old")
    assert catalog.knowledge() == {REVIEWS: endpoints("a"), RATINGS: endpoints("r")}
    await until(lambda: catalog.knowledge() == {REVIEWS: endpoints("a")}, what="ratings to be forgotten")
