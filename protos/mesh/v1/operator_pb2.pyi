import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.mesh.v1 import discovery_pb2 as _discovery_pb2
from protos.mesh.v1 import resource_pb2 as _resource_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChangeOptions(_message.Message):
    __slots__ = ("expect_version", "dry_run", "author", "reason", "wait", "force")
    EXPECT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    expect_version: int
    dry_run: bool
    author: str
    reason: str
    wait: _duration_pb2.Duration
    force: bool
    def __init__(self, expect_version: _Optional[int] = ..., dry_run: _Optional[bool] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., force: _Optional[bool] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("routes", "policies", "options")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Route]
    policies: _containers.RepeatedCompositeFieldContainer[_resource_pb2.ServicePolicy]
    options: ChangeOptions
    def __init__(self, routes: _Optional[_Iterable[_Union[_resource_pb2.Route, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[_resource_pb2.ServicePolicy, _Mapping]]] = ..., options: _Optional[_Union[ChangeOptions, _Mapping]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("kind", "name", "options")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    kind: _discovery_pb2.Resource.Kind
    name: _resource_pb2.Name
    options: ChangeOptions
    def __init__(self, kind: _Optional[_Union[_discovery_pb2.Resource.Kind, str]] = ..., name: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., options: _Optional[_Union[ChangeOptions, _Mapping]] = ...) -> None: ...

class ChangeResponse(_message.Message):
    __slots__ = ("previous_version", "version", "changes", "warnings", "answers")
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    previous_version: int
    version: int
    changes: _containers.RepeatedCompositeFieldContainer[ResourceChange]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    answers: _containers.RepeatedCompositeFieldContainer[SidecarAnswer]
    def __init__(self, previous_version: _Optional[int] = ..., version: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[ResourceChange, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., answers: _Optional[_Iterable[_Union[SidecarAnswer, _Mapping]]] = ...) -> None: ...

class ResourceChange(_message.Message):
    __slots__ = ("kind", "name", "action")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[ResourceChange.Action]
        ACTION_CREATED: _ClassVar[ResourceChange.Action]
        ACTION_UPDATED: _ClassVar[ResourceChange.Action]
        ACTION_DELETED: _ClassVar[ResourceChange.Action]
        ACTION_UNCHANGED: _ClassVar[ResourceChange.Action]
    ACTION_UNSPECIFIED: ResourceChange.Action
    ACTION_CREATED: ResourceChange.Action
    ACTION_UPDATED: ResourceChange.Action
    ACTION_DELETED: ResourceChange.Action
    ACTION_UNCHANGED: ResourceChange.Action
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    kind: _discovery_pb2.Resource.Kind
    name: _resource_pb2.Name
    action: ResourceChange.Action
    def __init__(self, kind: _Optional[_Union[_discovery_pb2.Resource.Kind, str]] = ..., name: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., action: _Optional[_Union[ResourceChange.Action, str]] = ...) -> None: ...

class SidecarAnswer(_message.Message):
    __slots__ = ("node", "result", "reason", "took")
    class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RESULT_UNSPECIFIED: _ClassVar[SidecarAnswer.Result]
        RESULT_ACKED: _ClassVar[SidecarAnswer.Result]
        RESULT_NACKED: _ClassVar[SidecarAnswer.Result]
        RESULT_SILENT: _ClassVar[SidecarAnswer.Result]
    RESULT_UNSPECIFIED: SidecarAnswer.Result
    RESULT_ACKED: SidecarAnswer.Result
    RESULT_NACKED: SidecarAnswer.Result
    RESULT_SILENT: SidecarAnswer.Result
    NODE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    node: str
    result: SidecarAnswer.Result
    reason: str
    took: _duration_pb2.Duration
    def __init__(self, node: _Optional[str] = ..., result: _Optional[_Union[SidecarAnswer.Result, str]] = ..., reason: _Optional[str] = ..., took: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: _discovery_pb2.Resource.Kind
    name: _resource_pb2.Name
    def __init__(self, kind: _Optional[_Union[_discovery_pb2.Resource.Kind, str]] = ..., name: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("version", "route", "policy")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    version: int
    route: _resource_pb2.Route
    policy: _resource_pb2.ServicePolicy
    def __init__(self, version: _Optional[int] = ..., route: _Optional[_Union[_resource_pb2.Route, _Mapping]] = ..., policy: _Optional[_Union[_resource_pb2.ServicePolicy, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("kind", "namespace", "version")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    kind: _discovery_pb2.Resource.Kind
    namespace: str
    version: int
    def __init__(self, kind: _Optional[_Union[_discovery_pb2.Resource.Kind, str]] = ..., namespace: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("version", "routes", "policies")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    version: int
    routes: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Route]
    policies: _containers.RepeatedCompositeFieldContainer[_resource_pb2.ServicePolicy]
    def __init__(self, version: _Optional[int] = ..., routes: _Optional[_Iterable[_Union[_resource_pb2.Route, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[_resource_pb2.ServicePolicy, _Mapping]]] = ...) -> None: ...

class SetWeightsRequest(_message.Message):
    __slots__ = ("service", "weights", "route", "options")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    weights: _containers.RepeatedCompositeFieldContainer[SubsetWeight]
    route: str
    options: ChangeOptions
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., weights: _Optional[_Iterable[_Union[SubsetWeight, _Mapping]]] = ..., route: _Optional[str] = ..., options: _Optional[_Union[ChangeOptions, _Mapping]] = ...) -> None: ...

class SubsetWeight(_message.Message):
    __slots__ = ("subset", "weight")
    SUBSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    subset: str
    weight: int
    def __init__(self, subset: _Optional[str] = ..., weight: _Optional[int] = ...) -> None: ...

class GetWeightsRequest(_message.Message):
    __slots__ = ("service",)
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ...) -> None: ...

class GetWeightsResponse(_message.Message):
    __slots__ = ("version", "rules")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    version: int
    rules: _containers.RepeatedCompositeFieldContainer[RuleWeights]
    def __init__(self, version: _Optional[int] = ..., rules: _Optional[_Iterable[_Union[RuleWeights, _Mapping]]] = ...) -> None: ...

class RuleWeights(_message.Message):
    __slots__ = ("service", "route", "rule", "backend_refs", "kind")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REFS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    service: _resource_pb2.Name
    route: _resource_pb2.Name
    rule: str
    backend_refs: _containers.RepeatedCompositeFieldContainer[_resource_pb2.BackendRef]
    kind: str
    def __init__(self, service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., route: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., rule: _Optional[str] = ..., backend_refs: _Optional[_Iterable[_Union[_resource_pb2.BackendRef, _Mapping]]] = ..., kind: _Optional[str] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("limit", "before_version")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    limit: int
    before_version: int
    def __init__(self, limit: _Optional[int] = ..., before_version: _Optional[int] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("revisions",)
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[Revision]
    def __init__(self, revisions: _Optional[_Iterable[_Union[Revision, _Mapping]]] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("version", "when", "author", "reason", "changes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    version: int
    when: _timestamp_pb2.Timestamp
    author: str
    reason: str
    changes: _containers.RepeatedCompositeFieldContainer[ResourceChange]
    def __init__(self, version: _Optional[int] = ..., when: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[ResourceChange, _Mapping]]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("to_version", "options")
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    to_version: int
    options: ChangeOptions
    def __init__(self, to_version: _Optional[int] = ..., options: _Optional[_Union[ChangeOptions, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("current", "sidecars")
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    current: _discovery_pb2.SnapshotId
    sidecars: _containers.RepeatedCompositeFieldContainer[SidecarStatus]
    def __init__(self, current: _Optional[_Union[_discovery_pb2.SnapshotId, _Mapping]] = ..., sidecars: _Optional[_Iterable[_Union[SidecarStatus, _Mapping]]] = ...) -> None: ...

class SidecarStatus(_message.Message):
    __slots__ = ("node", "service", "service_version", "instance_id", "sidecar_version", "state", "running", "reason", "since", "peer")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[SidecarStatus.State]
        STATE_ACKED: _ClassVar[SidecarStatus.State]
        STATE_NACKED: _ClassVar[SidecarStatus.State]
        STATE_PENDING: _ClassVar[SidecarStatus.State]
        STATE_DISCONNECTED: _ClassVar[SidecarStatus.State]
    STATE_UNSPECIFIED: SidecarStatus.State
    STATE_ACKED: SidecarStatus.State
    STATE_NACKED: SidecarStatus.State
    STATE_PENDING: SidecarStatus.State
    STATE_DISCONNECTED: SidecarStatus.State
    NODE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    node: str
    service: _resource_pb2.Name
    service_version: str
    instance_id: str
    sidecar_version: str
    state: SidecarStatus.State
    running: _discovery_pb2.SnapshotId
    reason: str
    since: _timestamp_pb2.Timestamp
    peer: str
    def __init__(self, node: _Optional[str] = ..., service: _Optional[_Union[_resource_pb2.Name, _Mapping]] = ..., service_version: _Optional[str] = ..., instance_id: _Optional[str] = ..., sidecar_version: _Optional[str] = ..., state: _Optional[_Union[SidecarStatus.State, str]] = ..., running: _Optional[_Union[_discovery_pb2.SnapshotId, _Mapping]] = ..., reason: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., peer: _Optional[str] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("when", "revision", "sidecar")
    WHEN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    when: _timestamp_pb2.Timestamp
    revision: Revision
    sidecar: SidecarStatus
    def __init__(self, when: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[_Union[Revision, _Mapping]] = ..., sidecar: _Optional[_Union[SidecarStatus, _Mapping]] = ...) -> None: ...
