"""Free TCP and UDP ports on loopback, for programs that cannot report a port they chose themselves."""

import random
import socket

# Below the kernel's ephemeral range (32768 up), so that no outgoing connection takes a port between the moment it is
# found free here and the moment the program binds it.
_LOWEST, _HIGHEST = 20_000, 32_000
_given: set[int] = set()
_rng = random.SystemRandom()  # not the seeded one: two runs side by side must not try the same ports


def free_port() -> int:
    """A port free for both TCP and UDP, never given out twice by this process."""
    while True:
        port = _rng.randrange(_LOWEST, _HIGHEST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def free_ports(count: int) -> list[int]:
    """``count`` different free ports."""
    return [free_port() for _ in range(count)]


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
