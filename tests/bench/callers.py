"""Traffic through several sidecars, to see when each of them routes otherwise. A process of its own.

    python -m tests.bench.callers RATE_PER_S PORT_OF_V2,… SIDECAR_PORT …

One connection to each sidecar, its turn every ``1 / RATE_PER_S`` seconds. Whenever another version answers than the
time before it prints ``{"sidecar": index, "version": "v2", "at": monotonic seconds}``, at the end of that answer.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from tests.bench.traffic import SERVICE
from tests.bench.upstream import BODY_BYTES, port_of

_REQUEST = f"GET /r0/items/1 HTTP/1.1\r\nHost: {SERVICE}\r\n\r\n".encode()


def call(sock: socket.socket) -> bytes:
    """One request; its body. Raises ValueError for an answer that is not as it should be."""
    sock.sendall(_REQUEST)
    answer = b""
    while (end := answer.find(b"\r\n\r\n") + 4) < 4 or len(answer) < end + BODY_BYTES:
        more = sock.recv(65536)
        if not more:
            raise ValueError("the connection was closed")
        answer += more
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"an answer was {answer[:60]!r}")
    return answer[end:]


def main(rate_per_s: int, second: set[int], ports: list[int]) -> None:
    """Call until the process is ended."""
    socks = [socket.create_connection(("127.0.0.1", port), timeout=10) for port in ports]
    last = [""] * len(ports)
    due = time.monotonic()
    while True:
        for index, sock in enumerate(socks):
            version = "v2" if port_of(call(sock)) in second else "v1"
            if version != last[index]:
                last[index] = version
                print(json.dumps({"sidecar": index, "version": version, "at": time.monotonic()}), flush=True)
        due = max(due + 1 / rate_per_s, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(int(sys.argv[1]), set(map(int, sys.argv[2].split(","))), list(map(int, sys.argv[3:])))
