from collections.abc import Callable

from mesh.telemetry.accesslog import Entry

def json_lines(entries: list[Entry], offset_s: float, twin: Callable[[Entry], bytes], /) -> bytes: ...
