"""The data plane: the asyncio sidecar. Read ``exchange.py`` first."""

import mesh  # noqa: F401 - it sees to MESH_PURE_PYTHON, before anything compiled is imported
