"""The relay of a request's body: what is kept, and who is stopped when."""

from typing import cast

from proxy.ports import DownstreamStream, UpstreamStream
from proxy.request_body import MAX_PIECES, REPLAY_BYTES, RequestBody


class Client:
    def __init__(self) -> None:
        self.is_paused = False

    def pause(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Endpoint:
    def __init__(self) -> None:
        self.taken = b""

    def send_data(self, piece: bytes) -> None:
        self.taken += piece


def body_of() -> tuple[RequestBody, Client]:
    client = Client()
    return RequestBody(cast("DownstreamStream", client)), client


def attach(body: RequestBody, endpoint: Endpoint, *, fills: bool = False) -> None:
    """As an attempt does; ``fills``: the endpoint's connection is full with what goes out with the head."""
    endpoint.taken += body.begin_attempt()
    if fills:
        body.on_writable(writable=False)
    body.attach(cast("UpstreamStream", endpoint))


def test_a_client_is_stopped_at_the_cap_while_nobody_takes_its_body() -> None:
    body, client = body_of()
    body.on_data(b"x" * REPLAY_BYTES)
    assert not client.is_paused
    body.on_data(b"x")
    assert client.is_paused
    attach(body, Endpoint())
    assert not client.is_paused


def test_an_endpoint_that_is_full_at_once_keeps_the_client_stopped() -> None:
    body, client = body_of()
    body.on_data(b"x" * 4 * REPLAY_BYTES)
    attach(body, Endpoint(), fills=True)
    assert client.is_paused
    body.on_writable(writable=True)
    assert not client.is_paused


def test_the_next_attempt_does_not_wait_for_the_endpoint_of_the_last() -> None:
    body, client = body_of()
    body.on_data(b"x" * 100)
    attach(body, Endpoint(), fills=True)
    assert client.is_paused
    body.detach()
    attach(body, second := Endpoint())
    assert not client.is_paused
    assert second.taken == b"x" * 100


def test_bytes_one_by_one_are_kept_as_few_objects_and_sent_again_whole() -> None:
    body, _ = body_of()
    attach(body, first := Endpoint())
    sent = bytes(i % 256 for i in range(REPLAY_BYTES))
    for i in range(len(sent)):
        body.on_data(sent[i : i + 1])
        assert len(body._kept) <= MAX_PIECES
    assert first.taken == sent
    body.detach()
    assert body.is_replayable
    attach(body, second := Endpoint())
    assert second.taken == sent
    body.on_data(b"x")
    assert not body.is_replayable
