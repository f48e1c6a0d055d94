import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from protos.mesh.v1 import resource_pb2 as _resource_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("service", "endpoint", "lease")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    endpoint: _resource_pb2.Endpoint
    lease: _duration_pb2.Duration
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., endpoint: _Optional[_Union[_resource_pb2.Endpoint, _Mapping]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    def __init__(self, lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("service", "instance_id", "health")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    instance_id: str
    health: _resource_pb2.Endpoint.Health
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., instance_id: _Optional[str] = ..., health: _Optional[_Union[_resource_pb2.Endpoint.Health, str]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    def __init__(self, lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DeregisterRequest(_message.Message):
    __slots__ = ("service", "instance_id")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    instance_id: str
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., instance_id: _Optional[str] = ...) -> None: ...

class DeregisterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("service",)
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("service",)
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ...) -> None: ...

class ServiceState(_message.Message):
    __slots__ = ("service", "endpoints", "registry_epoch", "settled", "revision", "lease")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    endpoints: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Endpoint]
    registry_epoch: str
    settled: bool
    revision: int
    lease: _duration_pb2.Duration
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., endpoints: _Optional[_Iterable[_Union[_resource_pb2.Endpoint, _Mapping]]] = ..., registry_epoch: _Optional[str] = ..., settled: _Optional[bool] = ..., revision: _Optional[int] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
