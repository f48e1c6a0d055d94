"""What both planes share: the nouns, the decisions, discovery, telemetry and the ``mesh`` command."""

import os

if os.environ.get("MESH_PURE_PYTHON"):
    from mesh import as_python

    as_python.install()
