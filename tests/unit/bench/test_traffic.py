import pytest

from tests.bench.traffic import COUNT, ROUTES, Traffic, wrk_script
from tests.bench.upstream import BODY_BYTES, port_of


def test_all_requests_differ_and_are_the_same_each_time():
    requests = Traffic().requests()
    assert len(set(requests)) == COUNT
    assert requests == Traffic().requests()


def test_they_are_of_the_size_and_shape_that_is_claimed():
    requests = Traffic().requests()
    fields = [request.count(b"\r\n") - 2 for request in requests]
    assert set(fields) == {8, 9}
    assert 430 <= sum(map(len, requests)) / COUNT <= 530
    assert sum(b"\r\nx-request-id: " in request for request in requests) == COUNT // 2
    assert len({request.split(b"traceparent: ")[1][:55] for request in requests}) == COUNT


def test_each_route_gets_its_share():
    paths = [request.split()[1] for request in Traffic().requests()]
    for route in range(ROUTES):
        assert sum(path.startswith(b"/r%d/" % route) for path in paths) == COUNT // ROUTES


@pytest.mark.parametrize("body", ["64kib", "1mib"])
def test_the_path_says_which_body_is_wanted(body):
    assert all(request.split(b"/")[2] == body.encode() for request in Traffic(body=body).requests())


def test_a_request_for_a_new_connection_asks_for_the_end_of_this_one():
    assert all(b"\r\nConnection: close\r\n" in request for request in Traffic(closes=True).requests())


def test_the_script_holds_every_request_on_one_line():
    requests = Traffic().requests()
    lines = wrk_script(requests).splitlines()
    quoted = [line.strip().rstrip(",") for line in lines if line.lstrip().startswith('"')]
    assert [line[1:-1].replace("\\r\\n", "\r\n").encode() for line in quoted] == requests


def test_the_answer_says_which_upstream_it_came_from():
    body = b"port 23456 ".ljust(BODY_BYTES, b".")
    assert port_of(body) == 23456
