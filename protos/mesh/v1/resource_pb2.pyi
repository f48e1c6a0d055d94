import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Name(_message.Message):
    __slots__ = ("namespace", "name")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("name", "parents", "rules", "created", "parent_ports", "kind")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_HTTP: _ClassVar[Route.Kind]
        KIND_GRPC: _ClassVar[Route.Kind]
        KIND_TCP: _ClassVar[Route.Kind]
    KIND_HTTP: Route.Kind
    KIND_GRPC: Route.Kind
    KIND_TCP: Route.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    PARENT_PORTS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: Name
    parents: _containers.RepeatedCompositeFieldContainer[Name]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    created: _timestamp_pb2.Timestamp
    parent_ports: _containers.RepeatedScalarFieldContainer[int]
    kind: Route.Kind
    def __init__(self, name: _Optional[_Union[Name, _Mapping]] = ..., parents: _Optional[_Iterable[_Union[Name, _Mapping]]] = ..., rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parent_ports: _Optional[_Iterable[int]] = ..., kind: _Optional[_Union[Route.Kind, str]] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("name", "matches", "backend_refs", "timeouts", "retry")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REFS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    name: str
    matches: _containers.RepeatedCompositeFieldContainer[RouteMatch]
    backend_refs: _containers.RepeatedCompositeFieldContainer[BackendRef]
    timeouts: Timeouts
    retry: Retry
    def __init__(self, name: _Optional[str] = ..., matches: _Optional[_Iterable[_Union[RouteMatch, _Mapping]]] = ..., backend_refs: _Optional[_Iterable[_Union[BackendRef, _Mapping]]] = ..., timeouts: _Optional[_Union[Timeouts, _Mapping]] = ..., retry: _Optional[_Union[Retry, _Mapping]] = ...) -> None: ...

class RouteMatch(_message.Message):
    __slots__ = ("path", "headers", "query_params", "method", "grpc")
    PATH_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    QUERY_PARAMS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    path: PathMatch
    headers: _containers.RepeatedCompositeFieldContainer[ValueMatch]
    query_params: _containers.RepeatedCompositeFieldContainer[ValueMatch]
    method: str
    grpc: GrpcMethodMatch
    def __init__(self, path: _Optional[_Union[PathMatch, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[ValueMatch, _Mapping]]] = ..., query_params: _Optional[_Iterable[_Union[ValueMatch, _Mapping]]] = ..., method: _Optional[str] = ..., grpc: _Optional[_Union[GrpcMethodMatch, _Mapping]] = ...) -> None: ...

class GrpcMethodMatch(_message.Message):
    __slots__ = ("type", "service", "method")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    type: ValueMatch.Type
    service: str
    method: str
    def __init__(self, type: _Optional[_Union[ValueMatch.Type, str]] = ..., service: _Optional[str] = ..., method: _Optional[str] = ...) -> None: ...

class PathMatch(_message.Message):
    __slots__ = ("type", "value")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[PathMatch.Type]
        TYPE_EXACT: _ClassVar[PathMatch.Type]
        TYPE_PREFIX: _ClassVar[PathMatch.Type]
        TYPE_REGULAR_EXPRESSION: _ClassVar[PathMatch.Type]
    TYPE_UNSPECIFIED: PathMatch.Type
    TYPE_EXACT: PathMatch.Type
    TYPE_PREFIX: PathMatch.Type
    TYPE_REGULAR_EXPRESSION: PathMatch.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    type: PathMatch.Type
    value: str
    def __init__(self, type: _Optional[_Union[PathMatch.Type, str]] = ..., value: _Optional[str] = ...) -> None: ...

class ValueMatch(_message.Message):
    __slots__ = ("type", "name", "value")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[ValueMatch.Type]
        TYPE_EXACT: _ClassVar[ValueMatch.Type]
        TYPE_REGULAR_EXPRESSION: _ClassVar[ValueMatch.Type]
    TYPE_UNSPECIFIED: ValueMatch.Type
    TYPE_EXACT: ValueMatch.Type
    TYPE_REGULAR_EXPRESSION: ValueMatch.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    type: ValueMatch.Type
    name: str
    value: str
    def __init__(self, type: _Optional[_Union[ValueMatch.Type, str]] = ..., name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class BackendRef(_message.Message):
    __slots__ = ("service", "subset", "weight", "port")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SUBSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    service: Name
    subset: str
    weight: int
    port: int
    def __init__(self, service: _Optional[_Union[Name, _Mapping]] = ..., subset: _Optional[str] = ..., weight: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class Timeouts(_message.Message):
    __slots__ = ("request", "backend_request")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _duration_pb2.Duration
    backend_request: _duration_pb2.Duration
    def __init__(self, request: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., backend_request: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Retry(_message.Message):
    __slots__ = ("codes", "attempts", "backoff", "grpc_codes")
    CODES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_FIELD_NUMBER: _ClassVar[int]
    GRPC_CODES_FIELD_NUMBER: _ClassVar[int]
    codes: _containers.RepeatedScalarFieldContainer[int]
    attempts: int
    backoff: _duration_pb2.Duration
    grpc_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, codes: _Optional[_Iterable[int]] = ..., attempts: _Optional[int] = ..., backoff: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., grpc_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class ServicePolicy(_message.Message):
    __slots__ = ("name", "subsets", "outlier_detection", "limits", "retry_budget", "connect_timeout", "app_protocol", "upgrades", "tls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBSETS_FIELD_NUMBER: _ClassVar[int]
    OUTLIER_DETECTION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RETRY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    CONNECT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    APP_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    UPGRADES_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    name: Name
    subsets: _containers.RepeatedCompositeFieldContainer[Subset]
    outlier_detection: OutlierDetection
    limits: Limits
    retry_budget: RetryBudget
    connect_timeout: _duration_pb2.Duration
    app_protocol: str
    upgrades: _containers.RepeatedScalarFieldContainer[str]
    tls: Tls
    def __init__(self, name: _Optional[_Union[Name, _Mapping]] = ..., subsets: _Optional[_Iterable[_Union[Subset, _Mapping]]] = ..., outlier_detection: _Optional[_Union[OutlierDetection, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., retry_budget: _Optional[_Union[RetryBudget, _Mapping]] = ..., connect_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., app_protocol: _Optional[str] = ..., upgrades: _Optional[_Iterable[str]] = ..., tls: _Optional[_Union[Tls, _Mapping]] = ...) -> None: ...

class Tls(_message.Message):
    __slots__ = ("server_name", "ca_file", "certificate_file", "key_file")
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    CA_FILE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FILE_FIELD_NUMBER: _ClassVar[int]
    KEY_FILE_FIELD_NUMBER: _ClassVar[int]
    server_name: str
    ca_file: str
    certificate_file: str
    key_file: str
    def __init__(self, server_name: _Optional[str] = ..., ca_file: _Optional[str] = ..., certificate_file: _Optional[str] = ..., key_file: _Optional[str] = ...) -> None: ...

class Subset(_message.Message):
    __slots__ = ("name", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class OutlierDetection(_message.Message):
    __slots__ = ("consecutive_failures", "base_ejection", "max_ejection_percent", "panic_percent")
    CONSECUTIVE_FAILURES_FIELD_NUMBER: _ClassVar[int]
    BASE_EJECTION_FIELD_NUMBER: _ClassVar[int]
    MAX_EJECTION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PANIC_PERCENT_FIELD_NUMBER: _ClassVar[int]
    consecutive_failures: int
    base_ejection: _duration_pb2.Duration
    max_ejection_percent: int
    panic_percent: int
    def __init__(self, consecutive_failures: _Optional[int] = ..., base_ejection: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_ejection_percent: _Optional[int] = ..., panic_percent: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_connections", "max_pending_requests", "max_requests")
    MAX_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    max_connections: int
    max_pending_requests: int
    max_requests: int
    def __init__(self, max_connections: _Optional[int] = ..., max_pending_requests: _Optional[int] = ..., max_requests: _Optional[int] = ...) -> None: ...

class RetryBudget(_message.Message):
    __slots__ = ("percent", "min_per_second")
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    MIN_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    percent: int
    min_per_second: int
    def __init__(self, percent: _Optional[int] = ..., min_per_second: _Optional[int] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("id", "address", "port", "metadata", "tags", "health")
    class Health(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HEALTH_UNSPECIFIED: _ClassVar[Endpoint.Health]
        HEALTH_PASSING: _ClassVar[Endpoint.Health]
        HEALTH_WARNING: _ClassVar[Endpoint.Health]
        HEALTH_CRITICAL: _ClassVar[Endpoint.Health]
        HEALTH_LEAVING: _ClassVar[Endpoint.Health]
    HEALTH_UNSPECIFIED: Endpoint.Health
    HEALTH_PASSING: Endpoint.Health
    HEALTH_WARNING: Endpoint.Health
    HEALTH_CRITICAL: Endpoint.Health
    HEALTH_LEAVING: Endpoint.Health
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    port: int
    metadata: _containers.ScalarMap[str, str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    health: Endpoint.Health
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., tags: _Optional[_Iterable[str]] = ..., health: _Optional[_Union[Endpoint.Health, str]] = ...) -> None: ...
