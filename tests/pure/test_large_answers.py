"""What answers of the API server may cost: whoever may write one object may fill it as the API server allows."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingestion_crds.follow import pages
from ingestion_crds.kube import KubeClient, parse, without_managed_fields

PATH = "/apis/batch/v1/jobs"
FIELDS: st.SearchStrategy[Any] = st.recursive(
    st.just({}), lambda inner: st.dictionaries(st.text(), inner, max_size=3), max_leaves=20
)


def of_managed_fields(size: int) -> bytes:
    """Return an object whose managed fields are as deep as orjson takes, and cost the most in Python."""
    chain = b'{"f:a":' * 900 + b"{}" + b"}" * 900
    fields = b",".join(b'"f:%d":%s' % (number, chain) for number in range(size // len(chain)))
    return b'{"metadata":{"managedFields":[{"fieldsV1":{%s}}],"name":"a"}}' % fields


def of_labels(size: int) -> bytes:
    labels = b",".join(b'"%06x":""' % number for number in range(size // 12))
    return b'{"metadata":{"labels":{%s},"name":"a"}}' % labels


def of_variables(size: int) -> bytes:
    variables = b",".join(b'{"name":"%06x"}' % number for number in range(size // 18))
    return b'{"metadata":{"name":"a"},"spec":{"env":[%s]}}' % variables


class ApiServer(KubeClient):
    """A client of an API server that has one collection.

    Args:
        objects: their JSON.
    """

    def __init__(self, objects: list[bytes]) -> None:
        self._objects = objects
        self.limits: list[int] = []

    async def _send(self, method: str, path: str, query: Mapping[str, Any] | None, *_: Any) -> Any:
        assert query is not None
        self.limits.append(query["limit"])
        begin = int(query.get("continue", 0))
        end = begin + query["limit"]
        following = str(end) if end < len(self._objects) else ""
        body = b'{"metadata":{"continue":"%s"},"items":[%s]}'
        body %= (following.encode(), b",".join(self._objects[begin:end]))

        async def blocks() -> AsyncIterator[bytes]:
            yield body

        content = SimpleNamespace(iter_any=blocks)
        return SimpleNamespace(status=200, response=SimpleNamespace(content=content, close=lambda: None))


@pytest.mark.parametrize("make", [of_managed_fields, of_labels, of_variables])
async def test_a_page_of_filled_objects_costs_no_more_than_the_operator_has(make: Any) -> None:
    server = ApiServer([make(700_000)] * 20)
    tracemalloc.start()
    try:
        listed = [item["metadata"]["name"] async for items, _ in pages(server, PATH) for item in items]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert listed == ["a"] * 20
    assert peak < 250_000_000  # with what the parser sets aside, and does not fill


async def test_two_pages_are_not_in_memory_at_once() -> None:
    server = ApiServer([b'{"metadata":{"name":"%d"}}' % number for number in range(1_200)])
    before: list[Any] = []
    async for items, _ in pages(server, PATH):
        assert before == []
        assert items
        before = items


async def test_one_object_that_no_parser_takes_is_asked_for_alone() -> None:
    """To look for the end of all managed fields of a page takes seconds, in which the process does nothing else."""
    odd = b'{"metadata":{"managedFields":[{"fieldsV1":%s}],"name":"odd"}}'
    odd %= b'{"f:a":' * 1_100 + b"{}" + b"}" * 1_100
    plain = b'{"metadata":{"managedFields":[{"fieldsV1":{"f:a":{}}}],"name":"plain"}}'
    server = ApiServer([plain] * 300 + [odd] + [plain] * 300)
    listed = [item["metadata"] async for items, _ in pages(server, PATH) for item in items]
    assert [item["name"] for item in listed] == ["plain"] * 300 + ["odd"] + ["plain"] * 300
    assert [item["managedFields"][0]["fieldsV1"] for item in listed] == [
        {} if item["name"] == "odd" else {"f:a": {}} for item in listed
    ]
    assert len(server.limits) < 40


async def test_of_ordinary_objects_a_page_has_as_many_as_may_be() -> None:
    fields = b'"f:spec":{' + b",".join(b'"f:field%d":{}' % number for number in range(150)) + b"}"
    values = b",".join(b'"field%d":"value"' % number for number in range(150))
    ordinary = b'{"metadata":{"managedFields":[{"fieldsV1":{%s}}],"name":"a"},"spec":{%s}}' % (fields, values)
    server = ApiServer([ordinary] * 1_000)
    assert [len(items) async for items, _ in pages(server, PATH)] == [500, 500]


def test_of_one_object_that_costs_much_managed_fields_are_left_out() -> None:
    """As of a page of kopf's, of which no smaller one can be asked for."""
    several = b'{"items":[%s]}' % b",".join([of_managed_fields(1_400_000)] * 5)
    tracemalloc.start()
    try:
        answer = parse(several)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [item["metadata"] for item in answer["items"]] == [{"managedFields": [{"fieldsV1": {}}], "name": "a"}] * 5
    assert peak < 3 * len(several)


@given(FIELDS, FIELDS, st.text())
def test_what_is_not_in_managed_fields_stays(first: Any, second: Any, note: str) -> None:
    def body(*fields: Any) -> Any:
        managed = [{"manager": note, "fieldsV1": value, "operation": "Update"} for value in fields]
        return {"metadata": {"annotations": {"fieldsV1": note}, "managedFields": managed, "name": note}, "spec": first}

    raw = orjson.dumps(body(first, second))
    assert orjson.loads(without_managed_fields(raw)) == body({}, {})
