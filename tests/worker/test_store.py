"""The store on a folder and on a real S3 server: the same behaviour, and errors with codes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Act, Answer, Forward, lose_answer, reset
from faults.store_proxy import StoreCall, StoreProxy, refuse
from hypothesis import given
from hypothesis import strategies as st
from ingestion_crds.indexset import IndexSet
from ingestion_worker import layout
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import PIECE_BYTES, ObjectMissingError, Store, StoreConfig, put_upload
from support.s3_server import S3Server

ROOT = Path(__file__).parents[2]


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_objects_are_written_read_listed_and_deleted(any_store: Store) -> None:
    any_store.put(key="kb/a/x.json", data=b"one")
    any_store.put(key="kb/a/x.json", data=b"three")
    any_store.put(key="kb/ab/y.json", data=b"")
    assert any_store.get(key="kb/a/x.json") == b"three"
    assert any_store.get_range(key="kb/a/x.json", start=1, end=3) == b"hr"
    assert any_store.size(key="kb/a/x.json") == 5
    assert [entry.key for entry in any_store.list(prefix="kb/a")] == ["kb/a/x.json"]
    assert list(any_store.list(prefix="nothing")) == []
    any_store.delete(key="kb/a/x.json")
    any_store.delete(key="kb/a/x.json")
    with pytest.raises(ObjectMissingError):
        any_store.get(key="kb/a/x.json")


def test_an_objects_size_is_known_before_its_bytes_are_read(any_store: Store) -> None:
    any_store.put(key="kb/a/x.json", data=b"12345")
    body = any_store.open(key="kb/a/x.json", max_bytes=5)
    assert body.size == 5
    assert body.read() == b"12345"
    with pytest.raises(WorkerError, match="DocumentTooLarge"):
        any_store.open(key="kb/a/x.json", max_bytes=4)
    with pytest.raises(ObjectMissingError):
        any_store.open(key="kb/a/y.json")


def test_one_creator_wins_and_a_repeated_request_is_the_same_one(any_store: Store) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        if any_store.create(key="race.json", data=b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert any_store.get(key="race.json") == b"%d" % won[0]
    assert any_store.create(key="race.json", data=b"%d" % won[0])


async def test_a_creation_that_is_not_answered_is_repeated(s3_server: S3Server) -> None:
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        config = replace(s3_server.config(bucket="unanswered"), endpoint=proxy.url)
        store = Store(config=config)
        for name, act in {"reset": reset, "torn": proxy.tear, "lost": lose_answer}.items():
            fault = proxy.add(lambda call: call.verb == "PUT", act, times=2)
            assert await asyncio.to_thread(store.create, key=f"{name}.json", data=name.encode())
            assert fault.injected == 2
            assert await asyncio.to_thread(store.get, key=f"{name}.json") == name.encode()
        proxy.add(lambda call: call.verb == "PUT", lose_answer)
        assert not await asyncio.to_thread(store.create, key="reset.json", data=b"another's")
        proxy.add(lambda call: call.verb == "PUT", reset, times=None)
        with pytest.raises(WorkerError, match="StoreUnavailable"):
            await asyncio.to_thread(store.create, key="never.json", data=b"x")


async def test_a_creation_refused_for_one_that_came_to_nothing_is_repeated(s3_server: S3Server) -> None:
    """S3 answers 409 while another writer's request is under way, whether it makes the object or not."""
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        config = replace(s3_server.config(bucket="conflicts"), endpoint=proxy.url, retry_seconds=2.0)
        store = Store(config=config)
        for status in (409, 412):
            fault = proxy.add(lambda call: call.verb == "PUT", refuse(status), times=2)
            assert await asyncio.to_thread(store.create, key=f"{status}.json", data=b"x")
            assert fault.injected == 2
            assert await asyncio.to_thread(store.get, key=f"{status}.json") == b"x"
        proxy.add(lambda call: call.verb == "PUT", refuse(409), times=None)
        assert not await asyncio.to_thread(store.create, key="never.json", data=b"x")


def test_large_files_go_up_and_down_in_pieces(any_store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * (20 * 2**20 // 256) + b"end"
    (tmp_path / "up").write_bytes(data)
    any_store.put_file(key="big/file", path=tmp_path / "up")
    digest = any_store.download(key="big/file", path=tmp_path / "down", max_bytes=len(data))
    assert digest == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "down").read_bytes() == data
    with pytest.raises(WorkerError, match="DocumentTooLarge"):
        any_store.download(key="big/file", path=tmp_path / "down", max_bytes=len(data) - 1)


async def test_an_upload_is_hashed_and_counted_on_the_way(any_store: Store) -> None:
    pieces = [b"a" * 3_000_000, b"", b"b" * 9_000_000, b"c"]
    upload = await put_upload(
        store=any_store,
        document_id="doc",
        file_name="../Händ book.PDF",
        chunks=stream(*pieces),
        max_bytes=2**24,
    )
    data = b"".join(pieces)
    assert re.fullmatch(rf"s3://{any_store.bucket}/uploads/doc/[0-9a-f-]{{36}}/H_nd_book.PDF", upload.uri)
    assert (upload.size, upload.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert any_store.get(key=upload.key) == data
    small = await put_upload(store=any_store, document_id="doc", file_name="", chunks=stream(b"x"), max_bytes=9)
    assert any_store.get(key=small.key) == b"x"
    empty = await put_upload(store=any_store, document_id="doc", file_name="e", chunks=stream(), max_bytes=9)
    assert any_store.size(key=empty.key) == 0


@pytest.mark.parametrize("piece", [b"x" * 10, b"x" * 9_000_000])
async def test_an_upload_over_the_cap_leaves_nothing(any_store: Store, piece: bytes) -> None:
    with pytest.raises(WorkerError, match="DocumentTooLarge"):
        await put_upload(
            store=any_store,
            document_id="doc",
            file_name="a",
            chunks=stream(piece, piece, piece),
            max_bytes=len(piece) * 2,
        )
    assert list(any_store.list(prefix="uploads")) == []


async def test_an_upload_whose_client_leaves_leaves_nothing(any_store: Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 9_000_000
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="went away"):
        await put_upload(store=any_store, document_id="doc", file_name="a", chunks=broken(), max_bytes=2**30)
    assert list(any_store.list(prefix="uploads")) == []


async def test_no_part_stays_of_an_upload_whose_client_leaves(s3_server: S3Server) -> None:
    """Whenever it does. Parts are no objects: no listing shows them, and nothing removes them."""

    async def broken(pause: float) -> AsyncIterator[bytes]:
        for _ in range(2):
            yield b"x" * PIECE_BYTES
        await asyncio.sleep(pause)  # while the parts are under way
        raise RuntimeError("the client went away")

    store = Store(config=s3_server.config(bucket="left"))
    for milliseconds in range(0, 72, 3):
        chunks = broken(milliseconds / 1000)
        with pytest.raises(RuntimeError, match="went away"):
            await put_upload(store=store, document_id="doc", file_name="a", chunks=chunks, max_bytes=2**30)
    assert [path for path in (s3_server.folder / "left").rglob("*") if path.is_file()] == []


def completes(call: StoreCall) -> bool:
    return call.verb == "POST" and "uploadId=" in call.target


def aborts(call: StoreCall) -> bool:
    return call.verb == "DELETE" and "uploadId=" in call.target


async def late(call: StoreCall, forward: Forward) -> Answer:
    """Carry a request out after the client has left."""

    async def carry_out() -> Answer:
        await asyncio.sleep(1.5)
        return await forward()

    return await asyncio.shield(asyncio.create_task(carry_out()))


@pytest.mark.parametrize("act", [lose_answer, late])
async def test_an_upload_that_is_completed_without_an_answer_is_there(
    s3_server: S3Server, act: Act, tmp_path: Path
) -> None:
    """MinIO does not know it any more when it is asked again, nor does versitygw while it copies all parts."""
    data = bytes(range(256)) * (9 * 2**20 // 256)
    (tmp_path / "file").write_bytes(data)
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        name = act.__name__.replace("_", "-")
        config = replace(s3_server.config(bucket=name), endpoint=proxy.url, assembly_seconds=10.0)
        store = Store(config=replace(config, timeout_seconds=1.0, retry_seconds=0.5))
        for key, put in {
            "bytes": lambda: asyncio.to_thread(store.put, key="bytes", data=data),
            "file": lambda: asyncio.to_thread(store.put_file, key="file", path=tmp_path / "file"),
            "stream": lambda: store.put_stream(key="stream", chunks=stream(data[:5], data[5:])),
        }.items():
            faults = [proxy.add(completes, act), proxy.add(completes, refuse(404)), proxy.add(aborts, refuse(404))]
            await put()
            assert [fault.injected for fault in faults] == [1, act is lose_answer, 1]
            proxy.faults.clear()
            assert await asyncio.to_thread(store.get, key=key) == data


@pytest.mark.parametrize(
    ("completion", "abort", "told"),
    [(refuse(404), None, "NoSuchUpload"), (reset, None, "HTTP error"), (reset, refuse(404), "NoSuchUpload")],
)
async def test_an_upload_that_is_not_completed_has_failed(
    s3_server: S3Server, completion: Act, abort: Act | None, told: str
) -> None:
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        config = replace(s3_server.config(bucket="incomplete"), retry_seconds=0.2, assembly_seconds=0.5)
        store = Store(config=replace(config, endpoint=proxy.url))
        proxy.add(completes, completion, times=None)
        if abort is not None:
            proxy.add(aborts, abort)
        with pytest.raises(WorkerError, match=f"StoreUnavailable: the store failed: {told}"):
            await store.put_stream(key="a", chunks=stream(b"x"))


async def test_an_upload_that_is_cancelled_while_its_object_is_looked_for_holds_no_thread(s3_server: S3Server) -> None:
    """Until then its process cannot end."""
    looked = asyncio.Event()

    async def look(call: StoreCall, forward: Forward) -> Answer:
        looked.set()
        return await forward()

    async with StoreProxy(server=s3_server.endpoint) as proxy:
        config = replace(s3_server.config(bucket="cancelled"), endpoint=proxy.url, assembly_seconds=10.0)
        proxy.add(completes, refuse(404))
        proxy.add(aborts, refuse(404))
        proxy.add(lambda call: call.verb == "HEAD", look)
        upload = asyncio.create_task(Store(config=config).put_stream(key="a", chunks=stream(b"x")))
        await asyncio.wait_for(looked.wait(), timeout=30)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        begun = time.monotonic()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert time.monotonic() - begun < 5


def test_wrong_credentials_are_forbidden(s3_server: Any) -> None:
    good = s3_server.config(bucket="locked")
    bad = StoreConfig(
        url=good.url,
        endpoint=good.endpoint,
        region="us-east-1",
        access_key_id=good.access_key_id,
        secret_access_key="wrong-secret",
        retry_seconds=1,
    )
    for run in (
        lambda store: store.put(key="a", data=b"x"),
        lambda store: store.create(key="a", data=b"x"),
        lambda store: store.get(key="a"),
        lambda store: list(store.list(prefix="a")),
        lambda store: store.size(key="a"),
    ):
        with pytest.raises(WorkerError) as caught:
            run(Store(config=bad))
        assert caught.value.code == "StoreForbidden", caught.value
        told = caught.value.message
        assert re.match("the store refused: (SignatureDoesNotMatch: The request|.* 403 Forbidden .a.$)", told)
        assert "wrong-secret" not in told + repr(bad)
        assert s3_server.access not in told


@pytest.mark.parametrize(
    ("status", "code", "message", "told"),
    [
        (403, "RequestTimeTooSkewed", "Late.", "StoreForbidden: the store refused: RequestTimeTooSkewed: Late."),
        (403, "", "No key AKIAIOSFODNN7EXAMPLE!", "StoreForbidden: the store refused: AccessDenied: No key ***!"),
        (400, "ExpiredToken", "Over.", "StoreForbidden: the store refused: ExpiredToken: Over."),
        (400, "X", "expecting &#39;eu-west-1&#39;", "StoreUnavailable: the store failed: X: expecting 'eu-west-1'"),
        (404, "NoSuchBucket", "None.", "StoreUnavailable: the store failed: NoSuchBucket: None."),
        (507, "", "Full.", "StoreUnavailable: the store failed: InsufficientStorage: Full."),
        (301, "", "", "StoreUnavailable: the store failed: Received redirect without LOCATION, this normally"),
    ],
)
async def test_why_a_store_refuses_is_told_first(
    s3_server: S3Server, status: int, code: str, message: str, told: str
) -> None:
    """Of a message a status holds 200 bytes, and a key may have as many."""
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        store = Store(config=replace(s3_server.config(bucket="told"), endpoint=proxy.url, retry_seconds=0.2))
        proxy.add(lambda _: True, refuse(status, code=code, message=message), times=None)
        key = layout.claim_key(knowledge_base="k" * 36, document_id="d" * 36, job_uid="j" * 36)
        for run in (
            lambda: store.get(key=key),
            lambda: store.create(key=key, data=b"x"),
            lambda: list(store.list(prefix=key)),
        ):
            with pytest.raises(WorkerError) as caught:
                await asyncio.to_thread(run)
            assert str(caught.value).startswith(told), caught.value
            assert key in caught.value.message
            assert "AWS4" not in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nothing_goes_through_a_proxy(s3_server: S3Server, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clusters put one into every pod's environment, and it knows no Service of the cluster."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    config = s3_server.config(bucket="direct")
    store = Store(config=replace(config, endpoint=s3_server.endpoint.replace("127.0.0.1", host), retry_seconds=0.2))
    store.put(key="a", data=b"x")
    assert store.get(key="a") == b"x"


@pytest.mark.parametrize("token", [None, "a-token", "a-token\n"])
async def test_the_token_of_keys_that_hold_for_a_time_is_sent(s3_server: S3Server, token: str | None) -> None:
    """A line break at its end, as of a Secret that was made of a file, is no part of it."""
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        proxy.add(lambda _: True, refuse(403), times=None)  # this store knows of no tokens
        store = Store(config=replace(s3_server.config(bucket="token"), endpoint=proxy.url, session_token=token))
        with pytest.raises(WorkerError, match="StoreForbidden"):
            await asyncio.to_thread(store.put, key="a", data=b"x")
        (sent,) = (call.headers.get("x-amz-security-token") for call in proxy.calls)
        assert sent == (token and token.strip())


@pytest.mark.parametrize("token", [None, "a-token"])
async def test_the_recipe_for_curl_sends_and_signs_the_token_too(
    s3_server: S3Server, tmp_path: Path, token: str | None
) -> None:
    """docs/give-a-file.md, whose reader has an empty variable where there is no token."""
    (recipe,) = re.findall(r"^\$ (s3\(\) .*)$", (ROOT / "docs" / "give-a-file.md").read_text(), re.MULTILINE)
    (tmp_path / "a.txt").write_text("x")
    store = Store(config=s3_server.config(bucket="recipe"))
    keys = {"AWS_ACCESS_KEY_ID": s3_server.access, "AWS_SECRET_ACCESS_KEY": s3_server.secret}
    environment = {**os.environ, **keys, "AWS_SESSION_TOKEN": token or ""}
    async with StoreProxy(server=s3_server.endpoint) as proxy:
        script = f"set -euo pipefail\n{recipe}\ns3 --noproxy '*' -sS -T a.txt {proxy.url}/recipe/a.txt"
        command = ("bash", "-c", script)
        ran = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, env=environment, check=False)
        (call,) = proxy.calls
    assert call.headers.get("x-amz-security-token") == token
    assert ("x-amz-security-token" in call.headers["Authorization"]) == (token is not None)
    assert (ran.returncode == 0) == (token is None)  # this store knows of no tokens
    if token is None:
        assert store.get(key="a.txt") == b"x"


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_a_key_may_end_in_a_line_break(s3_server: S3Server, end: str) -> None:
    """As in a Secret that was made of a file, or with `echo`."""
    good = s3_server.config(bucket="lines")
    padded = replace(good, access_key_id=f"{s3_server.access}{end}", secret_access_key=f"{s3_server.secret}{end}")
    Store(config=padded).put(key="a", data=b"x")
    assert Store(config=good).get(key="a") == b"x"


@pytest.mark.parametrize("empty", [None, "", "\n"])
@pytest.mark.parametrize("key", ["access_key_id", "secret_access_key"])
def test_without_a_key_the_store_is_not_asked(s3_server: S3Server, key: str, empty: str | None) -> None:
    """It would be asked as whoever the cloud says that the node is."""
    config = replace(s3_server.config(bucket="keys"), **{key: empty})
    with pytest.raises(WorkerError, match=f"^StoreForbidden: AWS_{key.upper()} of"):
        Store(config=config)


async def test_what_the_client_cannot_send_is_told(s3_server: S3Server) -> None:
    """It panics, which is no Exception and would end the process."""
    store = Store(config=replace(s3_server.config(bucket="panics"), access_key_id="a\x01b"))
    for run in (
        lambda: store.get(key="a"),
        lambda: store.create(key="a", data=b"x"),
        lambda: list(store.list(prefix="a")),
    ):
        with pytest.raises(WorkerError, match="StoreUnavailable: the store's client failed at a: "):
            await asyncio.to_thread(run)
    with pytest.raises(WorkerError, match="StoreUnavailable: the store's client failed at a: "):
        await store.put_stream(key="a", chunks=stream(b"x"))


def test_a_store_that_is_not_there_is_unavailable(s3_server: Any) -> None:
    gone = StoreConfig(
        url="s3://x", endpoint="http://127.0.0.1:1", access_key_id="a", secret_access_key="b", retry_seconds=0.2
    )
    with pytest.raises(WorkerError) as caught:
        Store(config=gone).put(key="a", data=b"x")
    assert caught.value.code == "StoreUnavailable"
    elsewhere = replace(s3_server.config(bucket="there"), url="s3://not-there")
    with pytest.raises(WorkerError) as caught:
        Store(config=elsewhere).put(key="a", data=b"x")
    assert caught.value.code in ("StoreUnavailable", "StoreForbidden")


@pytest.mark.parametrize("url", ["http://x", "s3://", "s3://bucket/prefix", "file://host/path", "file:///", ""])
def test_a_url_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(WorkerError, match="InvalidAttempt"):
        Store(config=StoreConfig(url=url))


@given(st.text(max_size=200))
def test_any_file_name_becomes_a_safe_part_of_a_key(name: str) -> None:
    safe = layout.safe_file_name(name=name)
    assert 0 < len(safe) <= layout.MAX_FILE_NAME
    assert safe.isascii()
    assert "/" not in safe
    assert safe not in (".", "..")


@given(st.integers(0, 99_999), st.sets(st.integers(1, 200_000), min_size=1, max_size=20), st.integers(1, 9_999_999))
def test_what_is_not_read_is_named_by_keys_that_are_no_outputs(segment: int, pages: set[int], count: int) -> None:
    found = IndexSet.of(pages)
    blank = layout.blank_pages_key(prefix="p", plan_hash="h", segment=segment, count=len(pages), pages=found)
    attached = layout.attachments_key(prefix="p", plan_hash="h", segment=None, count=count)
    pinned = layout.attachments_key(prefix="p", plan_hash="h", segment=segment, count=count)
    output = layout.segment_key(prefix="p", plan_hash="h", segment=segment, chunks=count)
    assert layout.parse_blank_pages_key(key=blank) == (segment, len(pages), found)
    assert layout.parse_attachments_key(key=attached) == ("attachments", count)
    assert layout.parse_attachments_key(key=pinned) == (f"{segment:06d}", count)
    for parse, others in (
        (layout.parse_segment_key, (blank, attached, pinned)),
        (layout.parse_blank_pages_key, (output, attached, pinned)),
        (layout.parse_attachments_key, (output, blank)),
    ):
        for key in others:
            with pytest.raises(ValueError, match="segments/h"):
                parse(key=key)


@given(st.integers(0, 99_999), st.integers(0, 9_999_999))
def test_an_outputs_key_says_its_segment_and_chunks(segment: int, chunks: int) -> None:
    key = layout.segment_key(prefix="p", plan_hash="h", segment=segment, chunks=chunks)
    assert layout.parse_segment_key(key=key) == (segment, chunks)


@pytest.mark.parametrize("name", ["-000005.parquet", "+000005.parquet", "1_0.parquet", f"{'1' * 900}.parquet", "5"])
def test_what_is_no_outputs_key_is_told_from_one(name: str) -> None:
    with pytest.raises(ValueError, match="p/segments"):
        layout.parse_segment_key(key=f"p/segments/h/000000/{name}")
