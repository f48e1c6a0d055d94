"""A service's program for tests with real processes: plain HTTP/1.1, nothing but the standard library, up in 0.1 s.

    python -m tests.support.program PORT NAME VERSION

Every answer is JSON: who answered, what it was asked. Some paths misbehave on purpose:

* ``/hold`` answers once somebody asks for ``/release``; ``/hold/headless`` never does
* ``/break/length`` and ``/break/chunked`` send a part of a body, and no more
* ``/environ`` tells the environment, ``/signals`` the signals that came
* ``/exit/N`` ends the program with exit code N; ``/die/N`` by signal N
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
from typing import Any

PART = b"x" * 1000
PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Program:
    def __init__(self, name: str, version: str) -> None:
        self._me = {"service": name, "version": version, "pid": os.getpid()}
        self._release = asyncio.Event()
        self._stop = asyncio.Event()
        self._signals: list[str] = []
        self._busy = 0

    async def serve(self, port: int) -> None:
        """Until SIGTERM; what is under way is finished first."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        for number in PASSED_ON:
            loop.add_signal_handler(number, self._signals.append, number.name)
        server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        print(f"serving on {port}", flush=True)
        await self._stop.wait()
        print("SIGTERM", flush=True)
        server.close()
        while self._busy:
            await asyncio.sleep(0.01)
        print("ended in order", flush=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self._busy += 1
                try:
                    if not await self._request(head, reader, writer):
                        break
                finally:
                    self._busy -= 1
        writer.close()

    async def _request(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = await _drop_body(headers, reader)
        path = target.partition("?")[0].strip("/").split("/")
        told: dict[str, Any] = {**self._me, "method": method, "path": target, "length": length}
        match path:
            case ["hold"]:
                await self._release.wait()
            case ["hold", "headless"]:
                await asyncio.Event().wait()
            case ["release"]:
                self._release.set()
            case ["break", "length"]:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + PART)
                await asyncio.Event().wait()
            case ["break", "chunked"]:
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e8\r\n" + PART + b"\r\n")
                await asyncio.Event().wait()
            case ["environ"]:
                told |= {"environ": dict(os.environ)}
            case ["signals"]:
                told |= {"signals": self._signals}
            case ["exit", code]:
                os._exit(int(code))
            case ["die", number]:
                os.kill(os.getpid(), int(number))
            case _:
                pass
        body = json.dumps(told).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        return headers.get("connection") != "close"


async def _drop_body(headers: dict[str, str], reader: asyncio.StreamReader) -> int:
    if "chunked" in headers.get("transfer-encoding", ""):
        total = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            total += len(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return total
    return len(await reader.readexactly(int(headers.get("content-length", "0"))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("name")
    parser.add_argument("version")
    given = parser.parse_args()
    asyncio.run(Program(given.name, given.version).serve(given.port))


if __name__ == "__main__":
    main()
