"""Which addresses are this sidecar's own listeners: a call out that ends there is a loop, or a way in from behind."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from proxy.config import Address


def is_own(address: str, port: int, listeners: Iterable[Address]) -> bool:
    """Tell whether one of ``listeners`` would take a connection to that address (an IP address) and port."""
    for listener in listeners:
        if listener.port != port:
            continue
        if listener.is_wildcard or not _is_ip(listener.host):  # by a name it listens on whatever that means here
            if is_of_this_machine(address):
                return True
        elif ipaddress.ip_address(listener.host) == _plain(address):
            return True
    return False


def is_of_this_machine(address: str) -> bool:
    """Tell whether an IP address is one of this machine's: only to those can a socket be bound."""
    ip = _plain(address)
    try:  # where the machine knows no IPv6 there is no such socket either
        with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
