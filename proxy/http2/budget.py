"""What a peer may cost before it is cut off with ENHANCE_YOUR_CALM: frames that achieve nothing, and reset streams.

Every such frame spends: pings, settings, empty data, priorities, window updates, what comes for streams that are over.
Streams and bodies earn, in either direction, and so does time. Ordinary traffic is therefore never short of it, while
a flood (CVE-2019-9511 to -9518) runs through it within milliseconds. Streams that are given up at once have a budget of
their own, whoever resets them (CVE-2023-44487, CVE-2025-8671).

Two kinds of frames look like a flood and are none:
- Credit in small steps. What was sent must be credited, so that it pays for its WINDOW_UPDATEs beforehand: also where
  they come all at once, or long afterwards.
- Data on its way of streams that we have reset. A whole window may have been sent before the peer hears of it; only
  empty frames and what exceeds that window are counted.

What this does not bound, its callers do: bytes (windows, sizes of heads), and the turns of the loop that a peer gets
whose frames do achieve something, however little.
"""

from __future__ import annotations

from typing import Final

from proxy.http2.errors import ConnectionFault, ErrorCode

BUDGET: Final = 1000  # frames that achieve nothing
EARNED: Final = 4  # of it for each stream or piece of body that comes
EARNED_BY_FRAME: Final = 8  # for each frame of data that goes out; with the updates below ten in all, as Envoy allows
UPDATES_BY_FRAME: Final = 2  # that are no flood: one for the stream, one for the connection
BYTES_FOR_UPDATE: Final = 128  # sent, for each WINDOW_UPDATE more that is no flood: two levels, in steps of 256
UPDATES_DUE: Final = 10_000  # at most: 20 MiB that were sent, credited in steps of 4 KiB
RESET_BUDGET: Final = 500  # streams that were given up at once, before their answer (Envoy's premature resets)
REMEMBERED: Final = 1000  # streams that we have reset, of which frames may still be on their way
SMALL: Final = 1024  # bytes of data for a stream that is over: what is larger pays for itself by its transport
LATE_FRAME: Final = 64  # of the window of a stream that was reset, for each frame that still comes of it, at least


class Budget:
    """See the module. One for each connection; ``tick`` is called once a second."""

    def __init__(self) -> None:
        """Full."""
        self._left = BUDGET
        self._resets_left = RESET_BUDGET
        self._updates_due = 0
        self._refused: dict[int, int] = {}  # in order of their end, with what may still come of each

    def tick(self) -> None:
        """Time earns some back too: a tenth in a second."""
        self._updates_due = min(self._updates_due, UPDATES_DUE)
        self._left = min(BUDGET, self._left + BUDGET // 10)
        self._resets_left = min(RESET_BUDGET, self._resets_left + RESET_BUDGET // 10)

    def earn(self) -> None:
        """A stream or a piece of a body has come."""
        if self._left < BUDGET:
            self._left += EARNED

    def earn_by_sending(self, size: int) -> None:
        """A frame of data goes out, of so many bytes, which the peer will have to credit."""
        self._updates_due += UPDATES_BY_FRAME + size // BYTES_FOR_UPDATE
        if self._left < BUDGET:
            self._left += EARNED_BY_FRAME

    def spend(self, count: int = 1) -> None:
        """Frames that achieve nothing. Raises ConnectionFault where they are too many."""
        self._left -= count
        if self._left < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a flood of frames that achieve nothing")

    def spend_update(self) -> None:
        """A WINDOW_UPDATE. Raises ConnectionFault where they are more than what was sent explains."""
        if self._updates_due:
            self._updates_due -= 1
        else:
            self.spend()

    def spend_reset(self) -> None:
        """A stream was given up at once. Raises ConnectionFault where they are too many."""
        self._resets_left -= 1
        if self._resets_left < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a flood of streams that are reset")

    def earn_reset(self) -> None:
        """A stream has ended in order."""
        if self._resets_left < RESET_BUDGET:
            self._resets_left += 1

    # --- streams that we have reset ---------------------------------------------------------------------------------

    def remember_refused(self, number: int, window: int) -> None:
        """Data of this stream may still come: what it had of window when it was reset."""
        self._refused[number] = self._refused.get(number, window)  # once: a second reset gives no window anew
        if len(self._refused) > REMEMBERED:
            del self._refused[next(iter(self._refused))]

    def is_refused(self, number: int) -> bool:
        """Tell whether it is one of the last that were reset by us."""
        return number in self._refused

    def spend_late_data(self, number: int, flow: int) -> None:
        """Data of a stream that is over. Raises ConnectionFault where there is more than was on its way."""
        left = self._refused.get(number, 0) - max(flow, LATE_FRAME)
        if number in self._refused:
            self._refused[number] = left
        if not flow or (left < 0 and flow < SMALL):
            self.spend()
