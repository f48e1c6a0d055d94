"""Every span attribute and metric name in one place, so that code, docs and dashboards say the same word.

Spans: OpenTelemetry's stable HTTP conventions, and ``mesh.*`` for what only a mesh knows. Metrics: Istio's names.
"""

from __future__ import annotations

# --- span attributes ------------------------------------------------------------------------------------------------

METHOD = "http.request.method"
STATUS_CODE = "http.response.status_code"
RESEND_COUNT = "http.request.resend_count"
URL_PATH = "url.path"
URL_QUERY = "url.query"
URL_SCHEME = "url.scheme"
URL_FULL = "url.full"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
CLIENT_ADDRESS = "client.address"
PEER_ADDRESS = "network.peer.address"
PEER_PORT = "network.peer.port"
PROTOCOL_VERSION = "network.protocol.version"
USER_AGENT = "user_agent.original"
ERROR_TYPE = "error.type"
MESH_CLUSTER = "mesh.cluster"
MESH_ENDPOINT = "mesh.endpoint"
MESH_ROUTE = "mesh.route"
MESH_FLAGS = "mesh.response_flags"
MESH_RETRY_REASON = "mesh.retry_reason"

# --- metrics --------------------------------------------------------------------------------------------------------

REQUESTS_TOTAL = "istio_requests_total"
REQUEST_DURATION = "istio_request_duration_milliseconds"
REQUEST_BYTES = "istio_request_bytes"
RESPONSE_BYTES = "istio_response_bytes"
