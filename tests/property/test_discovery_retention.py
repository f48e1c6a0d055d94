"""Laws of the retention, over any sequence of events."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mesh.discovery.base import Contact, Observation
from mesh.discovery.retention import Retention
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health

SERVICE = Name("default", "s")
GRACE_S = 30.0
IDS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Blind:
    pass


@dataclass(frozen=True)
class Failed:
    id: str


Event = Observation | Blind | Failed


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    listed = draw(st.lists(st.sampled_from(IDS), unique=True))
    endpoints = tuple(
        Endpoint(
            id_, id_, 80, {"version": draw(st.sampled_from(["v1", "v2"]))}, (), draw(st.sampled_from(list(Health)))
        )
        for id_ in listed
    )
    return Observation(SERVICE, endpoints, draw(st.sampled_from(list(Contact))))


events = st.lists(
    st.tuples(
        st.floats(0, 60),
        st.one_of(observations(), st.builds(Blind), st.builds(Failed, st.sampled_from(IDS))),
    ),
    max_size=12,
)


def play(retention: Retention, now: float, event: Event) -> None:
    match event:
        case Observation():
            retention.observe(now, event)
        case Blind():
            retention.lost_contact(now)
        case Failed(id_):
            retention.connect_failed(id_)


def usable(retention: Retention) -> set[str]:
    return {each.id for each in retention.served.usable}


@given(events)
def test_what_is_listed_as_usable_is_served_and_what_is_listed_as_unusable_is_not(
    script: list[tuple[float, Event]],
) -> None:
    retention, now = Retention(SERVICE, GRACE_S), 0.0
    for pause, event in script:
        now += pause
        play(retention, now, event)
        if isinstance(event, Observation):
            served = usable(retention)
            for each in event.endpoints:
                assert (each.id in served) == each.health.is_usable


@given(events)
def test_an_endpoint_that_was_usable_goes_only_for_one_of_the_five_reasons(script: list[tuple[float, Event]]) -> None:
    retention, now, contact_lost = Retention(SERVICE, GRACE_S), 0.0, True
    for pause, event in script:
        now += pause
        expired = {id_ for id_ in retention.served.missing if not contact_lost and retention.next_grace_end is not None}
        before = usable(retention)
        retention.expire(now)
        dropped_by_time = before - usable(retention)
        assert dropped_by_time <= expired  # only missing ones, and only in contact
        before, missing = usable(retention), retention.served.missing
        play(retention, now, event)
        gone = before - usable(retention)
        match event:
            case Observation():
                listed = {each.id for each in event.endpoints}
                others_remain = any(each.health.is_usable for each in event.endpoints)
                is_continuous = event.contact is Contact.CONTINUOUS and not contact_lost
                if gone - listed:
                    assert is_continuous
                    assert others_remain
                contact_lost = False
            case Blind():
                assert not gone
                contact_lost = True
            case Failed(id_):
                assert gone <= {id_} & missing


@given(events)
def test_after_the_grace_time_in_contact_exactly_what_is_listed_is_served(script: list[tuple[float, Event]]) -> None:
    retention, now = Retention(SERVICE, GRACE_S), 0.0
    last: Observation | None = None
    for pause, event in script:
        now += pause
        play(retention, now, event)
        last = event if isinstance(event, Observation) else last
    if last is not None:
        now += 1
        retention.observe(now, last)
        retention.expire(now + GRACE_S)
        assert usable(retention) == {each.id for each in last.endpoints if each.health.is_usable}
        assert retention.next_grace_end is None


@given(events)
def test_the_answer_whether_something_changed_is_true(script: list[tuple[float, Event]]) -> None:
    retention, now = Retention(SERVICE, GRACE_S), 0.0
    for pause, event in script:
        now += pause
        before = retention.served
        assert retention.expire(now) == (retention.served != before)
        before = retention.served
        match event:
            case Observation():
                assert retention.observe(now, event) == (retention.served != before)
            case Failed(id_):
                assert retention.connect_failed(id_) == (retention.served != before)
            case Blind():
                retention.lost_contact(now)
                assert retention.served == before
        assert retention.served.missing <= usable(retention)
        ids = [each.id for each in retention.served.known]
        assert ids == sorted(set(ids))


@given(st.permutations(IDS), st.lists(st.floats(0, GRACE_S - 1), min_size=4, max_size=4))
def test_a_source_that_restarts_empty_changes_no_share_if_all_return_within_the_grace_time(
    order: list[str], times: list[float]
) -> None:
    fleet = {id_: Endpoint(id_, id_, 80, {"version": "v1" if id_ in "ab" else "v2"}) for id_ in IDS}
    retention = Retention(SERVICE, GRACE_S)
    retention.observe(0, Observation(SERVICE, tuple(fleet.values()), Contact.RESUMED))
    retention.lost_contact(1)
    retention.observe(100, Observation(SERVICE, (), Contact.RESUMED))
    returned: list[Endpoint] = []
    for id_, at in zip(order, sorted(times), strict=True):
        retention.expire(100 + at)
        returned.append(fleet[id_])
        retention.observe(100 + at, Observation(SERVICE, tuple(returned), Contact.CONTINUOUS))
        assert usable(retention) == set(IDS)
    retention.expire(1000)
    assert usable(retention) == set(IDS)
