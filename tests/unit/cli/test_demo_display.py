"""What the demo shows at its end must be whole on a narrow terminal too."""

import io

from rich.console import Console

from mesh.cli.demo.display import trace_tree

SPANS = [
    {
        "span_id": "1", "parent_id": "", "start_ns": 1, "instance": "frontend", "kind": "CLIENT", "name": "GET",
        "duration_ms": 3.0, "attributes": {"http.response.status_code": 200, "mesh.cluster": "reviews:v2",
                                           "mesh.route": "reviews/0", "mesh.upstream.endpoint": "reviews-v2"},
    },
    {
        "span_id": "2", "parent_id": "1", "start_ns": 2, "instance": "reviews-v2", "kind": "SERVER", "name": "GET",
        "duration_ms": 2.0, "attributes": {"error.type": "503", "mesh.response_flags": "UH"},
    },
]  # fmt: skip


def test_a_trace_is_shown_whole_on_80_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(trace_tree({"trace_id": "ab" * 16, "spans": SPANS}), highlight=False)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    shown = "".join(line.replace("│", " ") for line in lines).replace(" ", "")
    for attribute in ("mesh.cluster=reviews:v2", "mesh.upstream.endpoint=reviews-v2", "mesh.response_flags=UH", "→503"):
        assert attribute in shown, out.getvalue()
