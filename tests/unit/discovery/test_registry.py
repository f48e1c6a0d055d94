"""The pure parts of the registry source."""

import grpc
import grpc.aio
import pytest

from mesh.discovery.base import Contact, SourceError, SourceRefused
from mesh.discovery.registry import Continuity, read_endpoints, translate
from protos.mesh.v1 import registry_pb2, resource_pb2

RESUMED, CONTINUOUS = Contact.RESUMED, Contact.CONTINUOUS


def test_a_stream_resumes_contact_once_and_then_continues() -> None:
    talk = Continuity()
    assert talk.received("e1", is_settled=True) is RESUMED
    assert talk.received("e1", is_settled=True) is CONTINUOUS
    talk.broke()
    assert talk.received("e1", is_settled=True) is RESUMED


def test_a_registry_that_has_not_settled_is_not_believed_about_what_is_missing() -> None:
    talk = Continuity()
    assert [talk.received("e1", is_settled=False) for _ in range(3)] == [RESUMED] * 3
    assert talk.received("e1", is_settled=True) is CONTINUOUS


def test_another_epoch_on_the_same_stream_resumes_contact() -> None:
    talk = Continuity()
    talk.received("e1", is_settled=True)
    assert talk.received("e2", is_settled=True) is RESUMED
    assert talk.received("e2", is_settled=True) is CONTINUOUS


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, SourceError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, SourceError),
        (grpc.StatusCode.INVALID_ARGUMENT, SourceRefused),
        (grpc.StatusCode.PERMISSION_DENIED, SourceRefused),
    ],
)
def test_only_what_a_person_must_mend_is_a_refusal(code: grpc.StatusCode, kind: type[SourceError]) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")
    translated = translate("127.0.0.1:15010", error)
    assert type(translated) is kind
    assert str(translated) == f"registry at 127.0.0.1:15010: {code.name} no"


def test_an_endpoint_that_cannot_be_read_is_an_error_of_the_source() -> None:
    bad = resource_pb2.Endpoint(id="a", address="a", port=80, health=77)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="not understood"):
        read_endpoints(registry_pb2.ServiceState(endpoints=[bad]))
