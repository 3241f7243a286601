"""Both embedders: what they return, and what each failure of an endpoint is called."""

from __future__ import annotations

import functools
import json
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingestion_worker.embedding import (
    EmbeddingSpec,
    HttpEmbedder,
    RequestLimits,
    batches,
    make_embedder,
    parse_retry_after,
)
from ingestion_worker.outcome import WorkerError
from support.worker_builders import BUILTIN, answer, builtin, http_server

OPEN: list[HttpEmbedder] = []
SPEC = EmbeddingSpec(provider="openai", model="m", dimensions=3)


def _batch_size(request: BaseHTTPRequestHandler) -> None:
    answer(request, 413, json.dumps({"message": "batch size > maximum allowed"}).encode())


class Endpoint:
    """An OpenAI-compatible endpoint that plays a script: statuses to answer first, then vectors."""

    def __init__(
        self,
        *,
        script: list[tuple[int, dict[str, str]]] | None = None,
        dimensions: int = 3,
        most: int | None = None,
        too_many: Callable[[BaseHTTPRequestHandler], None] | None = None,
    ) -> None:
        self.script = script or []
        self.most = most
        self.too_many = too_many or _batch_size
        self.dimensions = dimensions
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.mangle: Callable[[dict[str, Any]], Any] = lambda body: body

    def read(self, request: BaseHTTPRequestHandler) -> dict[str, Any]:
        """Take a request in."""
        body: dict[str, Any] = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.requests.append({**body, "path": request.path})
        self.keys.append(request.headers["Authorization"])
        return body

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        body = self.read(request)
        if self.script:
            status, headers = self.script.pop(0)
            key = (self.keys[-1] or "").removeprefix("Bearer ")
            said = f"the model\nis not there for {key} " + "x" * 2000
            error = json.dumps({"error": {"message": said}}).encode()
            answer(request, status, error, **headers)
            return
        if self.most is not None and len(body["input"]) > self.most:
            self.too_many(request)
            return
        if "refused" in body["input"]:
            answer(request, 400, json.dumps({"error": {"message": "a text is too long"}}).encode())
            return
        self.give(request, body)

    def give(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """Answer with vectors."""
        size = body.get("dimensions", self.dimensions)
        rows = [
            {"index": index, "embedding": [float(len(text))] + [0.0] * (size - 1)}
            for index, text in enumerate(body["input"])
        ]
        answer(request, 200, json.dumps(self.mangle({"data": rows[::-1]})).encode())


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def embedder(
    url: str, *, api_key: str | None = None, sleep: Callable[[float], None] = time.sleep, **limits: Any
) -> HttpEmbedder:
    chosen = RequestLimits(**{"read_seconds": 30.0, "total_seconds": 60.0, "backoff_seconds": 0.001, **limits})
    made = HttpEmbedder(spec=SPEC, url=f"{url}/v1/", api_key=api_key, limits=chosen, sleep=sleep)
    OPEN.append(made)
    return made


def failure(run: Callable[[], Any]) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        run()
    return caught.value


def test_the_builtin_model_knows_what_is_near() -> None:
    vectors = builtin().embed(["a dog barks", "the puppy howls", "quarterly tax report", "", "\ud800"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 256)
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert not vectors[3].any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=50), max_size=5), st.lists(st.text(max_size=50), max_size=5))
def test_a_builtin_vector_does_not_depend_on_its_batch(first: list[str], second: list[str]) -> None:
    together = builtin().embed(first + second)
    assert np.array_equal(together, np.concatenate([builtin().embed(first), builtin().embed(second)]))


def test_the_builtin_vectors_are_wordllamas_own() -> None:
    from pathlib import Path

    import wordllama

    folder = Path(wordllama.__file__).parent
    reference = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    texts = ["a dog barks", "Überall größer, 中文", "x" * 3000]
    assert np.allclose(builtin().embed(texts), reference.embed(texts, norm=True), atol=1e-6)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("12\nkeeper\n34", "12 keeper 34"),
        ("12\t keeper \r\n34\n", "12 keeper 34"),
        ("two\u00a0words\u3000here", "two words here"),
        (unicodedata.normalize("NFD", "Kündigungsfrist, tiếng Việt, 한국어"), "Kündigungsfrist, tiếng Việt, 한국어"),
        ("\ufb01nance o\ufb03ce", "finance office"),
        ("\uff21\uff22\uff23 \uff11\uff12\uff13", "ABC 123"),
    ],
    ids=["lines", "cells", "spaces", "decomposed", "ligatures", "full width"],
)
def test_a_builtin_vector_depends_on_the_words_and_not_on_how_they_are_written(written: str, plain: str) -> None:
    first, second = builtin().embed([written, plain])
    assert np.array_equal(first, second)


def test_a_word_in_a_column_is_found_as_one_in_a_line_is() -> None:
    columns = (
        ["harbour", "lighthouse", "warranty", "invoice"],
        ["pension", "keeper", "tractor", "violin"],
        ["glacier", "hammer", "walnut", "carpet"],
    )
    vectors = builtin().embed(["\n".join(words) for words in columns])
    for index, words in enumerate(columns):
        assert (builtin().embed(words) @ vectors.T).argmax(axis=1).tolist() == [index] * 4


def test_the_builtin_has_one_model_only() -> None:
    other = EmbeddingSpec(provider="builtin", model=BUILTIN.model, dimensions=64)
    assert failure(lambda: make_embedder(spec=other)).code == "EmbeddingRejected"
    assert failure(lambda: make_embedder(spec=SPEC)).code == "InvalidAttempt"


@given(st.lists(st.integers(0, 120_000), max_size=80))
def test_batches_keep_order_and_bounds(sizes: list[int]) -> None:
    texts = ["x" * size for size in sizes]
    made = list(batches(texts=texts))
    assert [text for batch in made for text in batch] == texts
    assert all(len(batch) <= 64 for batch in made)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 200_000 for batch in made)


def test_vectors_come_in_the_order_of_the_texts_and_normalised() -> None:
    endpoint = Endpoint()
    with http_server(handle=endpoint) as url:
        vectors = embedder(url, api_key="k").embed(["a", "bb", "ccc"] * 40)
    assert vectors.shape == (120, 3)
    assert np.allclose(vectors[:, 0], 1)
    assert [len(request["input"]) for request in endpoint.requests] == [1, 63, 56]
    assert endpoint.requests[0]["path"] == "/v1/embeddings"
    assert "dimensions" not in endpoint.requests[0]
    assert set(endpoint.keys) == {"Bearer k"}


@pytest.mark.parametrize(
    ("key", "header"), [(None, None), ("\n", None), (" k k\r\n", "Bearer k k")], ids=["none", "blank", "from a file"]
)
def test_a_key_is_sent_without_the_space_around_it_and_none_without_header(key: str | None, header: str | None) -> None:
    endpoint = Endpoint()
    with http_server(handle=endpoint) as url:
        embedder(url, api_key=key).embed(["a"])
    assert endpoint.keys == [header]


@pytest.mark.parametrize("given", [2, 8])
def test_dimensions_are_sent_only_once_a_model_gives_others(given: int) -> None:
    endpoint = Endpoint(dimensions=given)
    with http_server(handle=endpoint) as url:
        client = embedder(url)
        assert client.embed(["a"]).shape == (1, 3)
        client.embed(["b"])
    assert [request.get("dimensions") for request in endpoint.requests] == [None, 3, 3]


@pytest.mark.parametrize("given", [2, 8])
def test_a_model_that_has_no_such_dimensions_says_which_it_has(given: int) -> None:
    def strict(request: BaseHTTPRequestHandler) -> None:
        body = endpoint.read(request)
        if "dimensions" in body:
            answer(request, 400, b'{"message": "no matryoshka"}')
        else:
            endpoint.give(request, body)

    endpoint = Endpoint(dimensions=given)
    with http_server(handle=strict) as url:
        error = failure(lambda: embedder(url).embed(["a", "bb"]))
    assert error.code == "EmbeddingInvalid"
    assert f"vectors of {given} dimensions, not 3; " in error.message
    assert "no matryoshka" in error.message


def test_an_endpoint_gets_the_texts_as_they_are() -> None:
    endpoint = Endpoint()
    texts = ["one\ntwo\t three", unicodedata.normalize("NFD", "für"), "o\ufb03ce"]
    with http_server(handle=endpoint) as url:
        embedder(url).embed(texts)
    assert [text for request in endpoint.requests for text in request["input"]] == texts


@pytest.mark.parametrize("count", [1, 2, 64, 66, 200])
@pytest.mark.parametrize(("given", "again"), [(3, 0), (8, 1), (2, 1)], ids=["as asked", "more", "fewer"])
def test_no_more_than_one_text_is_asked_for_twice(given: int, again: int, count: int) -> None:
    """Each pod has an embedder of its own, which has to learn anew whether dimensions are to be sent."""
    endpoint = Endpoint(dimensions=given)
    texts = ["x" * (1 + number) for number in range(count)]
    with http_server(handle=endpoint) as url:
        client = embedder(url)
        client.embed(texts)
        first = len(endpoint.requests)
        client.embed(texts)
    asked = [text for request in endpoint.requests for text in request["input"]]
    assert asked == texts[:again] + texts + texts
    fewest = len(list(batches(texts=texts)))
    assert first <= fewest + 1 + again
    assert len(endpoint.requests) - first == fewest


def test_threads_that_learn_at_once_that_dimensions_are_to_be_sent_all_get_theirs() -> None:
    endpoint = Endpoint(dimensions=8)
    together = threading.Barrier(4, timeout=30)

    def asked(body: dict[str, Any]) -> dict[str, Any]:
        if len(body["data"][0]["embedding"]) == 8:
            together.wait()  # all have been asked before one is answered
        return body

    endpoint.mangle = asked
    with http_server(handle=endpoint) as url, ThreadPoolExecutor(max_workers=4) as pool:
        client = embedder(url)
        assert [vectors.shape for vectors in pool.map(client.embed, [["a"]] * 4)] == [(1, 3)] * 4


@pytest.mark.parametrize("most", [1, 3, 32])
def test_an_endpoint_that_takes_fewer_texts_is_asked_for_so_many(most: int) -> None:
    endpoint = Endpoint(most=most)
    texts = ["x" * (1 + number % 7) for number in range(150)]
    with http_server(handle=endpoint) as url:
        client = embedder(url)
        assert client.embed(texts).shape == (150, 3)
        learning = len(endpoint.requests)
        client.embed(texts)
    assert all(len(request["input"]) <= most for request in endpoint.requests[learning:])
    assert [text for request in endpoint.requests[learning:] for text in request["input"]] == texts


@pytest.mark.parametrize(
    "too_many",
    [lambda request: time.sleep(3), *(functools.partial(answer, status=status) for status in (408, 424, 504))],
    ids=["hangs", "408", "424", "504"],
)
def test_an_endpoint_that_takes_too_long_is_asked_for_fewer_texts(
    too_many: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    endpoint = Endpoint(most=8, too_many=too_many)
    texts = ["x" * (1 + number % 7) for number in range(40)]
    with http_server(handle=endpoint) as url:
        client = embedder(url, read_seconds=1.0, slow_seconds=0.5)
        assert client.embed(texts).shape == (40, 3)
        learning = len(endpoint.requests)
        client.embed(texts)
    assert [len(request["input"]) for request in endpoint.requests[:5]] == [1, 39, 20, 10, 5]
    assert all(len(request["input"]) <= 8 for request in endpoint.requests[5:])
    assert [text for request in endpoint.requests[learning:] for text in request["input"]] == texts


def test_one_text_that_takes_too_long_is_left_to_the_next_pod() -> None:
    endpoint = Endpoint(most=0, too_many=lambda request: time.sleep(3))
    with http_server(handle=endpoint) as url:
        client = embedder(url, read_seconds=1.0, slow_seconds=0.5)
        assert failure(lambda: client.embed(["a"])).code == "EmbeddingUnavailable"
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("wants", "error", "said"),
    [
        (None, {"detail": "Value 'float' supplied for argument 'encoding_format' is not valid"}, ["float", None, None]),
        (None, {"error": {"message": "no such parameters: {'encoding_format': 'float'}"}}, ["float", None, None]),
        ("float", {"error": {"message": "encoding_format: Input should be 'float' or 'base64'"}}, ["float", "float"]),
    ],
    ids=["Voyage", "LiteLLM before some models", "a strict server behind LiteLLM"],
)
def test_an_endpoint_that_takes_no_encoding_format_gets_none(
    wants: str | None, error: dict[str, Any], said: list[str | None]
) -> None:
    endpoint = Endpoint()

    def strict(request: BaseHTTPRequestHandler) -> None:
        body = endpoint.read(request)
        if body.get("encoding_format") == wants:
            endpoint.give(request, body)
        else:
            answer(request, 400, json.dumps(error).encode())

    with http_server(handle=strict) as url:
        assert embedder(url).embed(["a", "bb", "ccc"]).shape == (3, 3)
    assert [request.get("encoding_format") for request in endpoint.requests] == said


def test_one_text_that_is_refused_is_found_among_many() -> None:
    endpoint = Endpoint()
    with http_server(handle=endpoint) as url:
        client = embedder(url)
        error = failure(lambda: client.embed(["fine"] * 9 + ["refused"] + ["fine"] * 20))
        assert (error.code, "a text is too long" in error.message) == ("EmbeddingRejected", True)
        assert endpoint.requests[-1]["input"] == ["refused"]
        assert len(endpoint.requests) <= 10
        client.embed(["fine"] * 30)
    assert len(endpoint.requests[-1]["input"]) == 30  # the refusal taught it no smaller number


@pytest.mark.parametrize(
    ("statuses", "code", "requests"),
    [
        ([429, 503], None, 3),
        ([500] * 9, "EmbeddingUnavailable", 5),
        ([429] * 9, "EmbeddingRateLimited", 5),
        ([408] * 9, "EmbeddingUnavailable", 5),
        ([424] * 9, "EmbeddingUnavailable", 5),
        ([401], "EmbeddingUnauthorized", 1),
        ([403], "EmbeddingUnauthorized", 1),
        ([400], "EmbeddingRejected", 1),
        ([404], "EmbeddingRejected", 1),
        ([302], "EmbeddingRejected", 1),
    ],
)
def test_statuses_have_codes_and_only_some_are_tried_again(
    statuses: list[int], code: str | None, requests: int
) -> None:
    endpoint = Endpoint(script=[(status, {}) for status in statuses])
    with http_server(handle=endpoint) as url:
        client = embedder(url, api_key="sk-hidden")
        if code is None:
            client.embed(["a"])
        else:
            error = failure(lambda: client.embed(["a"]))
            assert error.code == code
            assert "sk-hidden" not in error.message
            assert len(error.message) < 700
            assert "the model is not there for ***" in error.message
    assert len(endpoint.requests) == requests


@pytest.mark.parametrize(
    ("said", "code", "requests"),
    [
        ({"error": {"code": 429, "message": "upstream is busy"}}, "EmbeddingRateLimited", 5),
        ({"error": {"code": "502", "message": "upstream is away"}, "data": []}, "EmbeddingUnavailable", 5),
        ({"error": {"code": 401, "message": "no such key"}}, "EmbeddingUnauthorized", 1),
        ({"error": {"code": 400, "message": "a text is too long"}}, "EmbeddingRejected", 1),
        ({"error": {"code": "server_error", "message": "it broke"}}, "EmbeddingUnavailable", 5),
        ({"error": "it broke"}, "EmbeddingUnavailable", 5),
        ({"error": None}, "EmbeddingInvalid", 1),
    ],
)
def test_an_error_behind_a_200_counts_as_one(said: dict[str, Any], code: str, requests: int) -> None:
    """As gateways answer that ask others."""
    endpoint = Endpoint()
    endpoint.mangle = lambda _: said
    with http_server(handle=endpoint) as url:
        assert failure(lambda: embedder(url).embed(["a"])).code == code
    assert len(endpoint.requests) == requests


def test_retry_after_is_honoured_up_to_a_minute() -> None:
    pauses: list[float] = []
    script = [(429, {"Retry-After": "7"}), (429, {"Retry-After": "100000"}), (503, {})]
    with http_server(handle=Endpoint(script=script)) as url:
        embedder(url, sleep=pauses.append).embed(["a"])
    assert pauses[:2] == [7.0, 60.0]
    assert pauses[2] < 0.1


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT"}])
def test_a_quota_of_a_minute_is_waited_for_though_nothing_is_said_of_it(headers: dict[str, str]) -> None:
    pauses: list[float] = []
    endpoint = Endpoint(script=[(429, headers)] * 4)
    with http_server(handle=endpoint) as url:
        embedder(url, sleep=pauses.append, backoff_seconds=RequestLimits().backoff_seconds).embed(["a"])
    assert sum(pauses) > 30
    assert pauses == sorted(pauses)


def test_no_pause_is_longer_than_asked_for() -> None:
    pauses: list[float] = []
    endpoint = Endpoint(script=[(429, {"Retry-After": "7"}), (503, {}), (503, {})])
    with http_server(handle=endpoint) as url:
        limits = {"tries": 3, "backoff_seconds": 9.0, "pause_seconds": 0.5}
        assert failure(lambda: embedder(url, sleep=pauses.append, **limits).embed(["a"])).code == "EmbeddingUnavailable"
    assert pauses == [0.5, 0.5]


def test_limits_are_passed_on() -> None:
    endpoint = Endpoint(script=[(503, {})])
    with http_server(handle=endpoint) as url:
        made = make_embedder(spec=SPEC, url=url, limits=RequestLimits(tries=1))
        assert failure(lambda: made.embed(["a"])).code == "EmbeddingUnavailable"
    assert len(endpoint.requests) == 1


def test_an_embedder_that_nobody_has_any_more_holds_nothing_open() -> None:
    with http_server(handle=Endpoint()) as url:
        made = make_embedder(spec=SPEC, url=url)
        assert isinstance(made, HttpEmbedder)
        made.embed(["a"])
        client = made._client
        assert not client.is_closed
        del made
        assert client.is_closed


def test_retry_after_can_be_a_date() -> None:
    now = 784_111_777.0
    assert parse_retry_after(value="Sun, 06 Nov 1994 08:49:47 GMT", now=now) == 10
    assert parse_retry_after(value="Sun, 06 Nov 1990 08:49:47 GMT", now=now) == 0
    assert parse_retry_after(value="soon", now=now) is None


MANGLED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "too few": lambda body: {"data": body["data"][:-1]},
    "too many": lambda body: {"data": body["data"] + body["data"]},
    "a repeated index": lambda body: {"data": [{**row, "index": 0} for row in body["data"]]},
    "an index out of range": lambda body: {"data": [{**row, "index": row["index"] + 7} for row in body["data"]]},
    "too short": lambda body: {"data": [{**row, "embedding": [1.0]} for row in body["data"]]},
    "ragged": lambda body: {"data": [{**row, "embedding": [1.0] * (row["index"] + 1)} for row in body["data"]]},
    "not a number": lambda body: {"data": [{**row, "embedding": [float("nan"), 0, 0]} for row in body["data"]]},
    "infinite": lambda body: {"data": [{**row, "embedding": [1e300, 0, 0]} for row in body["data"]]},
    "an integer of 401 digits": lambda body: {"data": [{**row, "embedding": [10**400, 0, 0]} for row in body["data"]]},
    "text": lambda body: {"data": [{**row, "embedding": ["x", "y", "z"]} for row in body["data"]]},
    "no data": lambda body: {"object": "list"},
    "a list": lambda body: [1, 2],
    "huge": lambda body: {"data": body["data"], "padding": "x" * 4_000_000},
    "longer, whatever is asked": lambda body: {"data": [{**row, "embedding": [1.0] * 9} for row in body["data"]]},
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("case", MANGLED)
def test_vectors_that_cannot_be_right_are_refused(case: str) -> None:
    endpoint = Endpoint()
    endpoint.mangle = MANGLED[case]
    with http_server(handle=endpoint) as url:
        assert failure(lambda: embedder(url).embed(["a", "bb", "ccc"])).code == "EmbeddingInvalid"


@pytest.mark.parametrize("number", [1e30, 1e-30, 1, -3e38, 0])
def test_a_vector_has_length_1_however_long_it_comes(number: float) -> None:
    endpoint = Endpoint()
    endpoint.mangle = lambda body: {"data": [{**row, "embedding": [number, number, 0]} for row in body["data"]]}
    with http_server(handle=endpoint) as url:
        vectors = embedder(url).embed(["a", "bb"])
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, np.array([[0.5, 0.5, 0]] * 2) ** 0.5 * np.sign(number))


def test_a_login_page_is_no_answer() -> None:
    with http_server(handle=lambda request: answer(request, 200, b"<html>please log in</html>")) as url:
        assert failure(lambda: embedder(url).embed(["a"])).code == "EmbeddingInvalid"


def test_hanging_endpoints_are_left_in_time() -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        for _ in range(600):
            try:
                request.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.1)

    impatient = {"tries": 2, "read_seconds": 0.4, "total_seconds": 1.0}
    for handle in (drip, lambda request: time.sleep(60)):
        began = time.monotonic()
        with http_server(handle=handle) as url:
            assert failure(lambda url=url: embedder(url, **impatient).embed(["a"])).code == "EmbeddingUnavailable"
        assert time.monotonic() - began < 45


def test_nobody_there() -> None:
    assert failure(lambda: embedder("http://127.0.0.1:1").embed(["a"])).code == "EmbeddingUnavailable"
    assert failure(lambda: embedder("ftp://127.0.0.1").embed(["a"])).code == "EmbeddingRejected"
