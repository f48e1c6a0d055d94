"""A client with one connection and a fixed rate. A process of its own, so that nothing else holds its interpreter.

    python -m tests.bench.open_loop PORT RATE_PER_S COUNT

Requests go out by the clock, whether or not the answer before took long. A latency counts from the moment the request
was sent; where the one before it came too late to send in time, it counts from when it should have been sent, so that
one slow answer is not hidden by the requests it kept from being made. That this client itself woke up late is nobody's
latency. Prints all latencies in nanoseconds as one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import socket
import sys
import time

from tests.bench.traffic import Traffic
from tests.bench.upstream import BODY_BYTES

PR_SET_TIMERSLACK = 29
SLACK_NS = 1_000
SPIN_NS = 60_000  # asleep until then; waking up takes about that long
START_AFTER_NS = 20_000_000
WARM_UP = 50


def measure(port: int, rate_per_s: int, count: int) -> list[int]:
    """``count`` latencies in nanoseconds. Raises OSError and ValueError where an answer is not as it should be."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0)
    requests = itertools.cycle(Traffic().requests())
    latencies = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(WARM_UP):
            _exchange(sock, next(requests))
        gc.collect()
        gc.disable()
        clock = time.perf_counter_ns
        start = clock() + START_AFTER_NS
        for number in range(count):
            due = start + number * 1_000_000_000 // rate_per_s
            request = next(requests)
            is_late = clock() > due
            sleep_ns = due - clock() - SPIN_NS
            if sleep_ns > 0:
                time.sleep(sleep_ns / 1e9)
            while clock() < due:
                pass
            begin = due if is_late else clock()
            _exchange(sock, request)
            latencies.append(clock() - begin)
    return latencies


def _exchange(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    answer = sock.recv(65536)
    while not (head_end := answer.find(b"\r\n\r\n")) > 0 or len(answer) < head_end + 4 + BODY_BYTES:
        more = sock.recv(65536)
        if not more:
            raise ValueError("the connection was closed")
        answer += more
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"an answer was {answer[:60]!r}")


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
