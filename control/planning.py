"""What a change would make of the table. Pure: dry runs and real changes take the same way up to the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from control.errors import NotFoundError
from control.store.base import Action, Change
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import Route
from mesh.model.snapshot import Kind, Resource, Snapshot, kind_of, make_snapshot
from mesh.model.validate import validate_table
from mesh.model.warnings import table_warnings
from mesh.model.wire import encode_resource

MAX_TABLE_BYTES: Final = 8 << 20
"""Every sidecar holds and compiles the whole table."""

Key = tuple[Kind, Name]


@dataclass(frozen=True, slots=True)
class Plan:
    """The table that a change makes. ``changes`` names every resource asked about, unchanged ones too."""

    snapshot: Snapshot
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    @property
    def effective(self) -> tuple[Change, ...]:
        """The changes that do change something; none means that there is nothing to store."""
        return tuple(change for change in self.changes if change.action is not Action.UNCHANGED)


def plan_apply(current: Snapshot, values: Iterable[Route | ServicePolicy], now_unix_s: float) -> Plan:
    """Create or replace ``values``. Raises InvalidError with all that is wrong with the table they would make.

    A route keeps the time of its first apply, which decides ties; whatever ``created_unix_s`` came with it.
    """
    given = list(values)
    validate_table(given)  # first, as what is not sound may not even fit into a message
    table = _by_key(current)
    for value in given:
        table[_key(value)] = _resource(value, table.get(_key(value)), now_unix_s)
    return _plan(current, table, [_key(value) for value in given])


def plan_delete(current: Snapshot, kind: Kind, name: Name) -> Plan:
    """Take one resource out. Raises NotFoundError."""
    table = _by_key(current)
    if table.pop((kind, name), None) is None:
        message = f"there is no {kind.value} {name}"
        raise NotFoundError(message)
    return _plan(current, table, [(kind, name)])


def plan_rollback(current: Snapshot, earlier: Snapshot) -> Plan:
    """Make the resources of ``earlier`` the table again, byte for byte."""
    table = {(resource.kind, resource.name): resource for resource in earlier.resources}
    return _plan(current, table, sorted({*table, *_by_key(current)}, key=lambda key: (key[0].value, key[1])))


def _plan(current: Snapshot, table: Mapping[Key, Resource], asked: Iterable[Key]) -> Plan:
    before = _by_key(current)
    validate_table(resource.value for resource in table.values())
    size = sum(len(resource.body) for resource in table.values())
    if size > MAX_TABLE_BYTES:
        raise InvalidError([Violation("", f"the table would have {size} bytes, at most {MAX_TABLE_BYTES} are taken")])
    changes = tuple(Change(*key, _action(before.get(key), table.get(key))) for key in asked)
    touched = [key for key in asked if key[0] is not Kind.SERVICE_POLICY and key in table]
    snapshot = make_snapshot(current.id.epoch, current.id.version + 1, table.values())
    warnings = table_warnings((resource.value for resource in table.values()), touched)
    return Plan(snapshot, changes, tuple(warnings))


def _action(before: Resource | None, after: Resource | None) -> Action:
    if after is None:
        return Action.DELETED
    if before is None:
        return Action.CREATED
    return Action.UNCHANGED if before.digest == after.digest else Action.UPDATED


def _resource(value: Route | ServicePolicy, before: Resource | None, now_unix_s: float) -> Resource:
    if isinstance(value, Route):
        old = before.value if before else None
        created = old.created_unix_s if isinstance(old, Route) else now_unix_s
        value = replace(value, created_unix_s=created)
    return encode_resource(value)


def _key(value: Route | ServicePolicy) -> Key:
    return (kind_of(value), value.name)


def _by_key(snapshot: Snapshot) -> dict[Key, Resource]:
    return {(resource.kind, resource.name): resource for resource in snapshot.resources}
