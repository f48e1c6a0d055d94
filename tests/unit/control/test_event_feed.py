from control import event_feed
from control.event_feed import EventFeed
from control.store.base import Revision
from control.subscription import SidecarInfo, Subscription


def test_events_come_in_order_and_a_client_far_behind_is_ended(monkeypatch):
    monkeypatch.setattr(event_feed, "MAX_EVENTS", 2)
    feed = EventFeed(lambda: 5.0)
    feed.revised(Revision(3, 1.0, "me", "", ()))
    feed.moved(Subscription(SidecarInfo("a"), since=2.0))
    feed.moved(Subscription(SidecarInfo("lost")))
    assert feed.bell.is_set()
    assert feed.is_over
    first, second = feed.take()
    assert not feed.bell.is_set()
    assert (first.revision.version, first.when.seconds) == (3, 1)
    assert (second.sidecar.node, second.when.seconds) == ("a", 5)
    assert list(feed.take()) == []
