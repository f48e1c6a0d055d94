"""The synchronous client against a real control server, from threads of a program that has a loop of its own."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from mesh.client import (
    ConflictError,
    MeshClient,
    NotFoundError,
    Options,
    RefusedError,
    SyncMeshClient,
    UnreachableError,
)
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.snapshot import Kind
from tests.support.control import REVIEWS, control_server, sidecars, split
from tests.support.ports import free_port

RATINGS = Name("default", "ratings")


@pytest.fixture
async def server():
    async with control_server() as server:
        yield server


def test_it_has_the_calls_of_the_async_client_with_the_same_arguments() -> None:
    def calls(client: type) -> dict[str, str]:
        found = {name: value for name, value in vars(client).items() if name[0] != "_" and inspect.isfunction(value)}
        return {
            name: str(inspect.signature(value)).replace("AsyncIterator", "Iterator") for name, value in found.items()
        }

    assert calls(SyncMeshClient) == calls(MeshClient)
    assert "watch" in calls(SyncMeshClient)


async def test_every_call_does_what_its_async_one_does(server) -> None:
    def operate() -> None:
        policy = ServicePolicy(REVIEWS, {"v2": {"version": "v2"}})
        with SyncMeshClient(server.grpc_address, author="script") as mesh:
            applied = mesh.apply([split(v1=90, v2=10), split(RATINGS, v1=1), policy], Options(reason="first"))
            assert (applied.previous_version, applied.version, len(applied.answers)) == (1, 2, 2)
            assert applied.is_acked_by_all
            assert mesh.get(Kind.SERVICE_POLICY, REVIEWS) == policy
            assert mesh.get(Kind.ROUTE, REVIEWS) in mesh.list().values
            assert mesh.list(version=1).values == ()
            moved = mesh.set_weights(REVIEWS, {"v1": 0, "v2": 100}, options=Options(force=True))
            assert moved.version == 3
            version, (rule,) = mesh.weights(REVIEWS)
            assert (version, {ref.subset: ref.weight for ref in rule.backend_refs}) == (3, {"v1": 0, "v2": 100})
            assert mesh.delete(Kind.ROUTE, RATINGS).version == 4
            assert mesh.rollback().version == 5
            assert [(each.version, each.author) for each in mesh.history(limit=2)] == [(5, "script"), (4, "script")]
            status = mesh.status()
            assert status.current.version == 5
            assert [sidecar.node for sidecar in status.sidecars] == ["sidecar-000", "sidecar-001"]
            with closing(mesh.watch()) as events:
                first = next(events)
                assert first.revision is not None
                assert first.revision.version == 5

    async with sidecars(server.grpc_address, 2):
        await asyncio.to_thread(operate)


async def test_errors_are_those_of_the_async_client(server) -> None:
    def operate() -> None:
        with SyncMeshClient(server.grpc_address) as mesh:
            mesh.apply([split(v1=90, v2=10)])
            with pytest.raises(ConflictError) as conflict:
                mesh.delete(Kind.ROUTE, REVIEWS, Options(expect_version=1))
            assert conflict.value.current_version == 2
            assert conflict.value.__cause__ is not None
            with pytest.raises(NotFoundError):
                mesh.get(Kind.ROUTE, RATINGS)
            with pytest.raises(RefusedError):
                mesh.set_weights(REVIEWS, {"v1": 0, "v2": 100})
            with pytest.raises(InvalidError):
                mesh.apply([split(v1=-1)])
            for weight in (2_000_000, -1, 2**40):  # some of them no message can carry
                with pytest.raises(InvalidError, match=rf"weights\[v1\]: is {weight}, not 0 to 1000000"):
                    mesh.set_weights(REVIEWS, {"v1": weight})
        with pytest.raises(RuntimeError, match="within `with`"):
            mesh.status()
        with (
            SyncMeshClient(f"127.0.0.1:{free_port()}") as nobody,
            pytest.raises(UnreachableError, match="mesh control"),
        ):
            nobody.status()
        with (
            SyncMeshClient(f"127.0.0.1:{free_port()}") as nobody,
            pytest.raises(UnreachableError, match="mesh control"),
        ):
            next(nobody.watch())

    await asyncio.to_thread(operate)


async def test_threads_share_one_client(server) -> None:
    def operate() -> list[int]:
        with SyncMeshClient(server.grpc_address) as mesh, ThreadPoolExecutor(8) as pool:
            changes = pool.map(lambda n: mesh.apply([split(Name("default", f"s{n}"), v1=1)]).version, range(8))
            return sorted(changes)

    assert await asyncio.to_thread(operate) == list(range(2, 10))
