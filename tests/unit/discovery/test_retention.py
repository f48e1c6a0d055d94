"""Dialogues with a Retention: what the source says on the left, what is served on the right."""

import pytest

from mesh.discovery.base import Contact, Observation
from mesh.discovery.retention import Retention
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health

REVIEWS = Name("default", "reviews")


def endpoint(
    id_: str,
    version: str = "v1",
    health: Health = Health.PASSING,
    *,
    address: str | None = None,
    tags: tuple[str, ...] = (),
) -> Endpoint:
    return Endpoint(id_, address or id_, 80, {"version": version}, tags, health)


class Dialogue:
    """A Retention with a grace time of 30 s, spoken to in short sentences."""

    def __init__(self) -> None:
        self.retention = Retention(REVIEWS, grace_s=30)

    def says(self, now: float, *endpoints: Endpoint | str) -> str:
        """The source, in contact all the time."""
        return self._observe(now, Contact.CONTINUOUS, endpoints)

    def resumes(self, now: float, *endpoints: Endpoint | str) -> str:
        """The source, for the first time or after a break."""
        return self._observe(now, Contact.RESUMED, endpoints)

    def after(self, now: float) -> str:
        """Time passes."""
        before = self.served
        assert self.retention.expire(now) == (self.served != before)
        return self.served

    @property
    def served(self) -> str:
        return " ".join(each.id for each in self.retention.served.usable)

    def _observe(self, now: float, contact: Contact, endpoints: tuple[Endpoint | str, ...]) -> str:
        listed = tuple(endpoint(each) if isinstance(each, str) else each for each in endpoints)
        self.retention.observe(now, Observation(REVIEWS, listed, contact))
        return self.served


@pytest.fixture
def talk() -> Dialogue:
    return Dialogue()


def test_nothing_is_served_before_the_first_observation(talk: Dialogue) -> None:
    assert talk.served == ""
    assert talk.retention.observations == 0
    assert talk.retention.next_grace_end is None


def test_additions_are_served_at_once(talk: Dialogue) -> None:
    assert talk.resumes(0, "a") == "a"
    assert talk.says(1, "b", "a") == "a b"


@pytest.mark.parametrize("health", [Health.CRITICAL, Health.LEAVING])
def test_a_critical_or_leaving_endpoint_is_taken_out_at_once_but_stays_known(talk: Dialogue, health: Health) -> None:
    talk.resumes(0, "a", "b")
    assert talk.says(1, "a", endpoint("b", health=health)) == "a"
    assert [each.id for each in talk.retention.served.known] == ["a", "b"]
    assert talk.says(2, "a", "b") == "a b"


def test_a_warning_endpoint_is_served(talk: Dialogue) -> None:
    assert talk.resumes(0, endpoint("a", health=Health.WARNING)) == "a"


def test_even_the_last_endpoint_is_taken_out_when_it_is_said_to_be_critical(talk: Dialogue) -> None:
    talk.resumes(0, "a")
    assert talk.says(1, endpoint("a", health=Health.CRITICAL)) == ""


def test_a_removal_by_a_source_in_contact_is_taken_at_once_while_others_remain(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    assert talk.says(1, "a") == "a"
    assert talk.retention.next_grace_end is None


def test_a_removal_after_resumed_contact_waits_for_the_grace_time(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    assert talk.resumes(10, "a") == "a b"
    assert talk.retention.served.missing == {"b"}
    assert talk.retention.next_grace_end == 40
    assert talk.after(39.9) == "a b"
    assert talk.after(40) == "a"
    assert talk.retention.next_grace_end is None


def test_the_last_endpoint_stays_for_the_grace_time_though_the_source_was_in_contact(talk: Dialogue) -> None:
    talk.resumes(0, "a")
    assert talk.says(1) == "a"
    assert talk.after(30.9) == "a"
    assert talk.after(31) == ""


def test_an_endpoint_that_is_still_missing_gets_no_second_grace_time(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    talk.resumes(10, "a")
    assert talk.says(20, "a") == "a b"
    assert talk.retention.next_grace_end == 40
    assert talk.says(41, "a") == "a"  # also if nobody called expire() in time


def test_the_others_that_must_remain_are_usable_ones(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    assert talk.says(1, endpoint("a", health=Health.CRITICAL)) == "b"


def test_a_removal_that_empties_a_version_waits_though_the_service_has_others(talk: Dialogue) -> None:
    talk.resumes(0, "a", endpoint("b", "v2"))
    assert talk.says(1, "a") == "a b"
    assert talk.after(31) == "a"


def test_a_removal_that_empties_a_subset_made_of_tags_waits(talk: Dialogue) -> None:
    talk.resumes(0, "a", endpoint("b", tags=("canary",)))
    assert talk.says(1, "a") == "a b"


def test_a_tag_and_a_version_of_one_name_are_the_same_subset(talk: Dialogue) -> None:
    tagged = Endpoint("b", "b", 80, {}, ("version=v1",))
    talk.resumes(0, "a", tagged)
    assert talk.says(1, "a") == "a"


def test_a_removal_that_empties_a_subset_of_the_policy_waits(talk: Dialogue) -> None:
    talk.retention.use_subsets({"east": {"zone": "east"}})
    east = Endpoint("b", "b", 80, {"version": "v1", "zone": "east"})
    talk.resumes(0, "a", east)
    assert talk.says(1, "a") == "a b"


def test_metadata_that_no_subset_names_holds_nobody_back(talk: Dialogue) -> None:
    talk.resumes(0, "a", Endpoint("b", "b", 80, {"version": "v1", "pod": "b-7f"}))
    assert talk.says(1, "a") == "a"


def test_an_instance_that_announced_its_leaving_is_gone_when_it_is_missing(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    talk.says(1, "a", endpoint("b", health=Health.LEAVING))
    assert talk.resumes(2, "a") == "a"
    assert [each.id for each in talk.retention.served.known] == ["a"]


def test_a_failed_connection_ends_the_grace_time(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b", "c")
    talk.resumes(1)
    assert talk.retention.connect_failed("b")
    assert talk.served == "a c"
    assert not talk.retention.connect_failed("b")
    assert talk.after(31) == ""


def test_a_failed_connection_to_a_listed_endpoint_is_left_to_outlier_detection(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    assert not talk.retention.connect_failed("a")
    assert talk.served == "a b"


def test_an_endpoint_that_returns_is_no_longer_missing(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    talk.resumes(1)
    assert talk.says(2, "b") == "a b"
    assert talk.retention.served.missing == {"a"}
    talk.retention.connect_failed("b")
    assert talk.served == "a b"


def test_an_endpoint_whose_address_is_listed_under_another_id_was_replaced(talk: Dialogue) -> None:
    talk.resumes(0, endpoint("a", address="10.0.0.1"))
    assert talk.resumes(1, endpoint("a2", address="10.0.0.1")) == "a2"


def test_while_the_source_is_blind_nothing_is_forgotten_and_the_age_grows(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    talk.resumes(1, "a")
    assert talk.retention.age_s(5) == 0
    talk.retention.lost_contact(6)
    talk.retention.lost_contact(9)
    assert talk.retention.blind_since == 6
    assert talk.retention.age_s(16) == 10
    assert talk.retention.next_grace_end is None
    assert talk.after(10_000) == "a b"


def test_the_age_counts_from_the_last_word_not_from_when_the_silence_was_noticed(talk: Dialogue) -> None:
    talk.resumes(0, "a")
    talk.retention.lost_contact(40, silent_s=35)
    talk.retention.lost_contact(50, silent_s=1)
    assert talk.retention.age_s(50) == 45
    assert talk.retention.next_grace_end is None
    talk.resumes(51, "a")
    assert talk.retention.age_s(51) == 0


def test_the_grace_time_begins_anew_with_each_resumed_contact(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    talk.resumes(1, "a")
    talk.retention.lost_contact(6)
    assert talk.resumes(1000, "a") == "a b"
    assert talk.retention.age_s(1000) == 0
    assert talk.retention.next_grace_end == 1030


def test_contact_that_was_lost_is_not_continuous_whatever_the_source_says(talk: Dialogue) -> None:
    talk.resumes(0, "a", "b")
    talk.retention.lost_contact(1)
    assert talk.says(2, "a") == "a b"


def test_what_an_earlier_process_knew_is_served_as_by_a_blind_source_until_the_source_speaks(talk: Dialogue) -> None:
    talk.retention.recall(100, (endpoint("b"), endpoint("a"), endpoint("c", health=Health.CRITICAL)), 3600)
    assert talk.served == "a b"
    talk.retention.lost_contact(101)  # the source was not there before either
    assert talk.retention.age_s(110) == 3610
    assert talk.after(10_000) == "a b"
    assert talk.says(20_000, "a") == "a b"  # whatever it says of itself: nobody here was in contact with it
    assert talk.retention.age_s(20_000) == 0
    assert talk.after(20_030) == "a"


def test_a_recalled_endpoint_that_takes_no_connection_is_gone_once_the_source_does_not_list_it(talk: Dialogue) -> None:
    talk.retention.recall(0, (endpoint("a"), endpoint("b")), 0)
    assert not talk.retention.connect_failed("b")
    talk.resumes(1, "a")
    assert talk.retention.connect_failed("b")
    assert talk.served == "a"


def test_nothing_is_recalled_over_what_was_observed(talk: Dialogue) -> None:
    talk.resumes(0, "a")
    talk.retention.recall(1, (endpoint("b"),), 0)
    assert talk.served == "a"


def test_the_source_restarts_empty_and_instances_return_one_by_one_and_no_share_changes(talk: Dialogue) -> None:
    fleet = [endpoint(f"v1-{n}") for n in range(3)] + [endpoint(f"v2-{n}", "v2") for n in range(2)]
    everything = talk.resumes(0, *fleet)
    talk.retention.lost_contact(100)
    served = [talk.resumes(105)]
    served += [talk.says(106 + n, *fleet[: n + 1]) for n in range(len(fleet))]
    served.append(talk.after(1000))
    assert set(served) == {everything}
    assert talk.retention.served.missing == frozenset()


def test_a_source_that_flickers_between_all_and_nothing_changes_nothing(talk: Dialogue) -> None:
    everything = talk.resumes(0, "a", "b")
    for now in range(1, 20, 2):
        assert talk.says(now) == everything
        assert talk.says(now + 1, "a", "b") == everything


def test_an_observation_that_says_nothing_new_is_no_change(talk: Dialogue) -> None:
    talk.resumes(0, "a")
    before = talk.retention.served
    assert not talk.retention.observe(1, Observation(REVIEWS, (endpoint("a"),), Contact.CONTINUOUS))
    assert talk.retention.served is before


def test_an_endpoint_with_a_new_address_replaces_itself(talk: Dialogue) -> None:
    talk.resumes(0, endpoint("a", address="10.0.0.1"))
    talk.says(1, endpoint("a", address="10.0.0.2"))
    assert [each.address for each in talk.retention.served.usable] == ["10.0.0.2"]
