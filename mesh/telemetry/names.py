"""Every span attribute, metric and log field in one place, so that code, docs and dashboards say the same word.

Spans: OpenTelemetry's stable HTTP conventions, its network attributes for TCP, and ``mesh.*`` for what only a mesh
knows. Metrics: Istio's names, so that existing dashboards work, ``mesh_*`` for what Istio has not, ``process_*`` as
every Prometheus client names them.
docs/metrics-and-spans.md tells what each means; a test holds the two lists together.
"""

from __future__ import annotations

from typing import NamedTuple

# --- span attributes ------------------------------------------------------------------------------------------------

METHOD = "http.request.method"
METHOD_ORIGINAL = "http.request.method_original"
STATUS_CODE = "http.response.status_code"
RPC_SYSTEM = "rpc.system"
GRPC_STATUS = "rpc.grpc.status_code"
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
TRANSPORT = "network.transport"
USER_AGENT = "user_agent.original"
ERROR_TYPE = "error.type"
MESH_CLUSTER = "mesh.cluster"
MESH_ENDPOINT = "mesh.endpoint"
MESH_ROUTE = "mesh.route"
MESH_FLAGS = "mesh.response_flags"
MESH_RETRY_REASON = "mesh.retry_reason"
MESH_BYTES_RECEIVED = "mesh.bytes_received"
MESH_BYTES_SENT = "mesh.bytes_sent"

ATTRIBUTES = (
    METHOD, METHOD_ORIGINAL, STATUS_CODE, RPC_SYSTEM, GRPC_STATUS, RESEND_COUNT, URL_PATH, URL_QUERY, URL_SCHEME,
    URL_FULL, SERVER_ADDRESS, SERVER_PORT, CLIENT_ADDRESS, PEER_ADDRESS, PEER_PORT, PROTOCOL_VERSION, TRANSPORT,
    USER_AGENT, ERROR_TYPE, MESH_CLUSTER, MESH_ENDPOINT, MESH_ROUTE, MESH_FLAGS, MESH_RETRY_REASON,
    MESH_BYTES_RECEIVED, MESH_BYTES_SENT,
)  # fmt: skip

# --- metrics --------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A metric family. ``labels`` are those beside Istio's, which ISTIO_LABELS lists."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


ISTIO_LABELS = (
    "reporter", "source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
    "source_cluster", "source_canonical_service", "source_canonical_revision", "destination_workload",
    "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
    "destination_service", "destination_service_name", "destination_service_namespace", "destination_cluster",
    "destination_canonical_service", "destination_canonical_revision", "request_protocol", "response_code",
    "response_flags", "connection_security_policy",
)  # fmt: skip

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

REQUESTS = Metric("istio_requests_total", COUNTER, "Requests that are over.", ISTIO_LABELS)
REQUEST_DURATION = Metric(
    "istio_request_duration_milliseconds", HISTOGRAM, "From a request's head to its answer's end.", ISTIO_LABELS
)
REQUEST_BYTES = Metric("istio_request_bytes", HISTOGRAM, "Size of request bodies.", ISTIO_LABELS)
RESPONSE_BYTES = Metric("istio_response_bytes", HISTOGRAM, "Size of answers' bodies.", ISTIO_LABELS)

TCP_OPENED = Metric(
    "istio_tcp_connections_opened_total", COUNTER, "TCP connections that reached an endpoint.", ISTIO_LABELS
)
TCP_CLOSED = Metric("istio_tcp_connections_closed_total", COUNTER, "TCP connections that are over.", ISTIO_LABELS)
TCP_RECEIVED = Metric("istio_tcp_received_bytes_total", COUNTER, "Bytes from their clients.", ISTIO_LABELS)
TCP_SENT = Metric("istio_tcp_sent_bytes_total", COUNTER, "Bytes to their clients.", ISTIO_LABELS)

RETRIES = Metric("mesh_retries_total", COUNTER, "Attempts that another one followed, by why.", ("reason",))
BUDGET_EXHAUSTED = Metric(
    "mesh_retry_budget_exhausted_total", COUNTER, "Retries not made because the budget was spent.", ("service",)
)
EJECTIONS = Metric("mesh_ejections_total", COUNTER, "Endpoints taken out by outlier detection.", ("service",))
UPSTREAM_CONNECTIONS = Metric("mesh_upstream_connections", GAUGE, "Connections to endpoints.", ("service",))
UPSTREAM_ACTIVE = Metric("mesh_upstream_active_requests", GAUGE, "Requests under way to a service.", ("service",))
UPSTREAM_PENDING = Metric("mesh_upstream_pending_requests", GAUGE, "Requests that wait for a connection.", ("service",))
ENDPOINTS = Metric(
    "mesh_endpoints", GAUGE, "Endpoints of a service: known to discovery, usable, ejected.", ("service", "state")
)
ENDPOINTS_AGE = Metric(
    "mesh_endpoints_age_seconds", GAUGE, "Time since discovery last confirmed what is served.", ("service",)
)
DISCOVERY_SERVICES = Metric("mesh_discovery_services", GAUGE, "Services discovery is asked for.", ("state",))
LISTENER_CONNECTIONS = Metric("mesh_listener_connections", GAUGE, "Open client connections.", ("listener",))
REFUSED_CONNECTIONS = Metric(
    "mesh_listener_refused_connections_total", COUNTER, "Connections closed for there were too many.", ("listener",)
)
FAILED_HANDSHAKES = Metric(
    "mesh_listener_failed_handshakes_total", COUNTER, "TLS handshakes that came to nothing.", ("listener",)
)
EXCHANGES = Metric("mesh_exchanges_under_way", GAUGE, "Requests without a complete answer yet.")
HEALTH_ANSWERS = Metric("mesh_health_answers_total", COUNTER, "Health checks answered by the sidecar itself.")
TABLE_VERSION = Metric("mesh_table_version", GAUGE, "Version of the routing table that runs; 0 is none.")
TABLE_ACKS = Metric("mesh_table_acks_total", COUNTER, "Tables taken from the control server.")
TABLE_NACKS = Metric("mesh_table_nacks_total", COUNTER, "Tables refused.")
CONTROL_CONNECTED = Metric("mesh_control_connected", GAUGE, "1 while the control stream is up.")
LAST_GOOD_FAILURES = Metric(
    "mesh_last_good_write_failures_total", COUNTER, "Times the table or the endpoints could not be kept on disk."
)
SPANS_EXPORTED = Metric("mesh_spans_exported_total", COUNTER, "Spans that the backend took.")
SPANS_DROPPED = Metric("mesh_spans_dropped_total", COUNTER, "Spans lost: queue full, or the backend did not take them.")
SPANS_QUEUED = Metric("mesh_spans_queued", GAUGE, "Spans that wait to be sent.")
LOG_LINES = Metric("mesh_access_log_lines_total", COUNTER, "Access log lines written.")
LOG_DROPPED = Metric("mesh_access_log_dropped_total", COUNTER, "Access log lines lost: too slow or unwritable.")
CAPPED = Metric("mesh_metrics_capped", GAUGE, "1 where further series of a kind are counted as other.", ("kind",))
BUILD = Metric("mesh_build_info", GAUGE, "Always 1; the labels say what runs.", ("version", "python", "service"))
READY = Metric("mesh_ready", GAUGE, "1 while /ready answers 200.")
RSS = Metric("process_resident_memory_bytes", GAUGE, "Resident memory.")
CPU = Metric("process_cpu_seconds_total", COUNTER, "CPU time, user and system.")
OPEN_FDS = Metric("process_open_fds", GAUGE, "Open file descriptors.")
START_TIME = Metric("process_start_time_seconds", GAUGE, "When the process started, Unix time.")

METRICS = (
    REQUESTS, REQUEST_DURATION, REQUEST_BYTES, RESPONSE_BYTES, TCP_OPENED, TCP_CLOSED, TCP_RECEIVED, TCP_SENT,
    RETRIES, BUDGET_EXHAUSTED, EJECTIONS,
    UPSTREAM_CONNECTIONS, UPSTREAM_ACTIVE, UPSTREAM_PENDING, ENDPOINTS, ENDPOINTS_AGE, DISCOVERY_SERVICES,
    LISTENER_CONNECTIONS, REFUSED_CONNECTIONS, FAILED_HANDSHAKES, EXCHANGES, HEALTH_ANSWERS,
    TABLE_VERSION, TABLE_ACKS, TABLE_NACKS,
    CONTROL_CONNECTED, LAST_GOOD_FAILURES, SPANS_EXPORTED, SPANS_DROPPED, SPANS_QUEUED, LOG_LINES, LOG_DROPPED,
    CAPPED, BUILD, READY, RSS, CPU, OPEN_FDS, START_TIME,
)  # fmt: skip

# --- access log fields ----------------------------------------------------------------------------------------------

LOG_FIELDS = (
    "start_time", "method", "path", "protocol", "response_code", "response_flags", "bytes_received", "bytes_sent",
    "duration", "upstream_service_time", "x_forwarded_for", "user_agent", "request_id", "authority", "upstream_host",
    "listener", "downstream_address", "trace_id", "route", "cluster", "retries", "grpc_status",
    "error",
)  # fmt: skip
