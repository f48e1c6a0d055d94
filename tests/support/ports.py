"""Free TCP and UDP ports on loopback, for programs that cannot report a port they chose themselves."""

import asyncio
import random
import socket

# Below the kernel's ephemeral range (32768 up), so that no outgoing connection takes a port between the moment it is
# found free here and the moment the program binds it. And in blocks, each of one process: the tests run two at a time,
# and a port that one has been given but not bound yet is free to the other.
_LOWEST, _BLOCK, _BLOCKS = 20_000, 250, 48
_rng = random.SystemRandom()  # not the seeded one: two runs side by side need not try the same blocks first
_left: list[int] = []
_claims: list[socket.socket] = []


def free_port() -> int:
    """A port free for both TCP and UDP, never given out twice by this process, nor by another while this one lives."""
    while True:
        if not _left:
            _left.extend(_claim())
        port = _left.pop()
        if _is_free(port):
            return port


def free_ports(count: int) -> list[int]:
    """``count`` different free ports."""
    return [free_port() for _ in range(count)]


async def is_open(port: int) -> bool:
    """Somebody listens on it."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _claim() -> list[int]:
    """A block of ports that no other process has; its name is free again when this process ends, however it does."""
    for block in _rng.sample(range(_BLOCKS), _BLOCKS):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0sidemesh-tests-ports-{block}")  # no file: unix(7), "abstract"
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return _rng.sample(range(_LOWEST + block * _BLOCK, _LOWEST + (block + 1) * _BLOCK), _BLOCK)
    message = f"all {_BLOCKS * _BLOCK} ports for tests have been given out"
    raise RuntimeError(message)


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
