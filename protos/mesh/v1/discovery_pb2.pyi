import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.mesh.v1 import resource_pb2 as _resource_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DiscoveryRequest(_message.Message):
    __slots__ = ("hello", "ack", "nack", "endpoint_state")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_STATE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    nack: Nack
    endpoint_state: EndpointState
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., endpoint_state: _Optional[_Union[EndpointState, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node", "service", "service_version", "instance_id", "sidecar_version", "capabilities", "wanted_services", "running")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    WANTED_SERVICES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    node: str
    service: _resource_pb2.Name
    service_version: str
    instance_id: str
    sidecar_version: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    wanted_services: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Name]
    running: SnapshotId
    def __init__(self, node: _Optional[str] = ..., service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., service_version: _Optional[str] = ..., instance_id: _Optional[str] = ..., sidecar_version: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., wanted_services: _Optional[_Iterable[_Union[_resource_pb2.Name, _Mapping]]] = ..., running: _Optional[_Union[SnapshotId, _Mapping]] = ...) -> None: ...

class SnapshotId(_message.Message):
    __slots__ = ("epoch", "version", "digest")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    version: int
    digest: str
    def __init__(self, epoch: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class SnapshotPush(_message.Message):
    __slots__ = ("nonce", "id", "unchanged", "resources", "published")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    id: SnapshotId
    unchanged: bool
    resources: _containers.RepeatedCompositeFieldContainer[Resource]
    published: _timestamp_pb2.Timestamp
    def __init__(self, nonce: _Optional[str] = ..., id: _Optional[_Union[SnapshotId, _Mapping]] = ..., unchanged: _Optional[bool] = ..., resources: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., published: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("kind", "name", "digest", "body")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Resource.Kind]
        KIND_ROUTE: _ClassVar[Resource.Kind]
        KIND_SERVICE_POLICY: _ClassVar[Resource.Kind]
        KIND_GRPC_ROUTE: _ClassVar[Resource.Kind]
        KIND_TCP_ROUTE: _ClassVar[Resource.Kind]
    KIND_UNSPECIFIED: Resource.Kind
    KIND_ROUTE: Resource.Kind
    KIND_SERVICE_POLICY: Resource.Kind
    KIND_GRPC_ROUTE: Resource.Kind
    KIND_TCP_ROUTE: Resource.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    kind: Resource.Kind
    name: _resource_pb2.Name
    digest: str
    body: bytes
    def __init__(self, kind: _Optional[_Union[Resource.Kind, str]] = ..., name: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., digest: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("nonce", "id")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    id: SnapshotId
    def __init__(self, nonce: _Optional[str] = ..., id: _Optional[_Union[SnapshotId, _Mapping]] = ...) -> None: ...

class Nack(_message.Message):
    __slots__ = ("nonce", "id", "reason", "running")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    id: SnapshotId
    reason: str
    running: SnapshotId
    def __init__(self, nonce: _Optional[str] = ..., id: _Optional[_Union[SnapshotId, _Mapping]] = ..., reason: _Optional[str] = ..., running: _Optional[_Union[SnapshotId, _Mapping]] = ...) -> None: ...

class EndpointState(_message.Message):
    __slots__ = ("service", "endpoint_ids", "watching")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_IDS_FIELD_NUMBER: _ClassVar[int]
    WATCHING_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    endpoint_ids: _containers.RepeatedScalarFieldContainer[str]
    watching: bool
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., endpoint_ids: _Optional[_Iterable[str]] = ..., watching: _Optional[bool] = ...) -> None: ...

class AwaitUnseenRequest(_message.Message):
    __slots__ = ("service", "instance_id", "node")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    instance_id: str
    node: str
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., instance_id: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class AwaitUnseenResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Iterable[str]] = ...) -> None: ...
