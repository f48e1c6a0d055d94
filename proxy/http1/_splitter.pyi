from collections.abc import Sequence

from proxy.http1.splitter import Split

class Splitter:
    def __init__(self, kinds: dict[bytes, int], gathered: int, single: int) -> None: ...
    def split(self, head: bytes, /) -> Split | None: ...

def join_head(
    front: Sequence[bytes], lines: Sequence[bytes], added: Sequence[bytes], tail: Sequence[bytes], /
) -> bytes: ...
