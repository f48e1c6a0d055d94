"""What a connection holds that its client has not taken, where only the kernel knows."""

import asyncio
import contextlib
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import unsent
from proxy.unsent import UNANSWERED, holds_unsent


def transport(held: int = 0, own: Any = None) -> asyncio.Transport:
    made = SimpleNamespace(get_write_buffer_size=lambda: held, get_extra_info=lambda _: own)
    return cast("asyncio.Transport", made)


def test_what_a_transport_holds_itself_is_enough_to_know() -> None:
    assert holds_unsent(transport(held=1), is_tls=False)
    assert holds_unsent(transport(held=1), is_tls=True)
    assert not holds_unsent(transport(), is_tls=False)


def test_one_behind_tls_that_is_lost_below_holds_nothing() -> None:
    """Its transport tells of that a turn later, and has no socket meanwhile."""
    assert not holds_unsent(transport(), is_tls=True)


def test_the_kernel_is_asked_for_one_behind_tls() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listening.getsockname())
    accepted, _ = listening.accept()
    accepted.setblocking(False)
    with listening, client, accepted:
        assert not holds_unsent(transport(own=accepted), is_tls=True)
        with contextlib.suppress(BlockingIOError):
            while accepted.send(b"x" * (1 << 20)):
                pass
        assert holds_unsent(transport(own=accepted), is_tls=True)
        assert not holds_unsent(transport(own=accepted), is_tls=False)
    assert not holds_unsent(transport(own=accepted), is_tls=True)  # closed


def test_a_client_that_has_vanished_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with a real one, whose link is down: tcpi_retransmits goes up, to 5 after five seconds."""
    monkeypatch.setattr(unsent.fcntl, "ioctl", lambda *_: b"\x01\0\0\0")
    for sent_again, asked in ((UNANSWERED - 1, 0), (UNANSWERED, 0), (0, UNANSWERED)):
        own = SimpleNamespace(fileno=lambda: 0, getsockopt=lambda *_, told=(1, 0, sent_again, asked): bytes(told))
        assert holds_unsent(transport(own=own), is_tls=True) is (max(sent_again, asked) < UNANSWERED)
