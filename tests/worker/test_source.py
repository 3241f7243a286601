"""Sources: what may be read, from where, for how long, and what each failure is called."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingestion_worker.outcome import WorkerError
from ingestion_worker.source import AllowList, Fetched, embedded_address, fetch_source, is_public
from ingestion_worker.store import Store
from support.worker_builders import IMPATIENT, LOOPBACK, SMALL, answer, http_server

NOTHING = AllowList(text="")
Fetch = Callable[..., Fetched]


@pytest.fixture
def fetch(store: Store, tmp_path: Path) -> Fetch:
    def run(uri: str, **more: Any) -> Fetched:
        options: dict[str, Any] = {"sha256": None, "allow": LOOPBACK, "limits": SMALL, **more}
        return fetch_source(uri=uri, store=store, path=tmp_path / "source", **options)

    return run


def failure(fetch: Fetch, uri: str, **more: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        fetch(uri, **more)
    return caught.value


def test_an_object_of_the_own_bucket_is_read(store: Store, fetch: Fetch) -> None:
    store.put(key="uploads/a b%20c.txt", data=b"hello")
    fetched = fetch("s3://team-a/uploads/a b%20c.txt")
    assert (fetched.path.read_bytes(), fetched.name, fetched.size) == (b"hello", "a b%20c.txt", 5)
    assert fetched.sha256 == hashlib.sha256(b"hello").hexdigest()


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("s3://team-b/uploads/a.txt", "SourceNotAllowed"),
        ("s3://team-a/", "SourceNotAllowed"),
        ("s3://team-a/../team-b/a.txt", "SourceNotAllowed"),
        ("s3://team-a//a.txt", "SourceNotAllowed"),
        ("s3://team-a/uploads/none.txt", "SourceNotFound"),
        ("file:///etc/passwd", "SourceNotAllowed"),
        ("/etc/passwd", "SourceNotAllowed"),
        ("ftp://example.com/a", "SourceNotAllowed"),
        ("http://user:secret@127.0.0.1/a", "SourceNotAllowed"),
        ("http://127.0.0.1:99999/a", "SourceNotAllowed"),
        ("http:///a", "SourceNotAllowed"),
        ("http://[::1/a", "SourceNotAllowed"),
    ],
)
def test_what_is_not_a_source(fetch: Fetch, uri: str, code: str) -> None:
    error = failure(fetch, uri)
    assert error.code == code
    assert "secret" not in error.message


def test_an_object_over_the_cap_is_refused(store: Store, fetch: Fetch) -> None:
    store.put(key="big", data=b"x" * (SMALL.max_bytes + 1))
    assert failure(fetch, "s3://team-a/big").code == "DocumentTooLarge"


@pytest.mark.parametrize("size", [7, 100_000])
@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_full_disk_is_no_fault_of_the_source(
    store: Store, fetch: Fetch, tmp_path: Path, scheme: str, size: int
) -> None:
    (tmp_path / "source").symlink_to("/dev/full")
    store.put(key="a.txt", data=b"x" * size)
    with http_server(handle=lambda request: answer(request, 200, b"x" * size)) as url:
        error = failure(fetch, "s3://team-a/a.txt" if scheme == "s3" else f"{url}/a.txt")
    assert (error.code, error.retryable, error.exit_code) == ("Internal", True, 1)
    assert error.message.startswith("the copy of a.txt cannot be written: ")


def test_a_wrong_hash_is_found(store: Store, fetch: Fetch) -> None:
    store.put(key="a.txt", data=b"hello")
    error = failure(fetch, "s3://team-a/a.txt", sha256="0" * 64)
    assert error.code == "SourceHashMismatch"
    assert "a.txt" in error.message


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0.0.0.0",
        "10.96.0.1",
        "192.168.1.1",
        "172.16.0.9",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[::127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "[fec0::1]",
        "[2002:7f00:1::]",
        "[64:ff9b::10.0.0.1]",
        "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    ],
)
def test_addresses_inside_are_refused(fetch: Fetch, host: str) -> None:
    error = failure(fetch, f"http://{host}:9/a", allow=NOTHING)
    assert error.code == "SourceNotAllowed"
    assert "allow-list" in error.message


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses_are_public(text: str) -> None:
    assert is_public(address=ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_every_form_of_an_address_is_judged_like_the_address(address: ipaddress.IPv4Address) -> None:
    for form in (f"::ffff:{address}", f"64:ff9b::{address}"):
        wrapped = ipaddress.ip_address(form)
        assert embedded_address(address=wrapped) == address
        assert is_public(address=wrapped) == is_public(address=address)


def test_the_allow_list_names_hosts_and_networks() -> None:
    allow = AllowList(text=" Files.Example.internal , 10.1.0.0/16,")
    inner = ipaddress.ip_address("10.2.0.1")
    assert allow.permits(host="files.example.INTERNAL.", address=inner)
    assert not allow.permits(host="other.internal", address=inner)
    assert allow.permits(host="other.internal", address=ipaddress.ip_address("10.1.2.3"))
    assert allow.permits(host="other.internal", address=ipaddress.ip_address("::ffff:10.1.2.3"))


def test_a_denied_network_counts_as_not_public_in_every_form(fetch: Fetch) -> None:
    allow = AllowList(text="8.8.4.0/24,files.example", deny="8.8.0.0/16, 2606:4700::/32")
    for form in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::", "2606:4700::1111"):
        assert not allow.permits(host="other.example", address=ipaddress.ip_address(form)), form
        assert allow.permits(host="files.example", address=ipaddress.ip_address(form)), form
    for form in ("8.8.4.4", "::ffff:8.8.4.4", "9.9.9.9", "2620:fe::fe"):
        assert allow.permits(host="other.example", address=ipaddress.ip_address(form)), form
    assert failure(fetch, "http://8.8.8.8:9/a", allow=allow).code == "SourceNotAllowed"
    assert not allow.permits(host="other.example", address=ipaddress.ip_address("10.0.0.1"))


@pytest.mark.parametrize("deny", ["files.example", "8.8.8.8/33"])
def test_what_is_no_network_cannot_be_denied(deny: str) -> None:
    with pytest.raises(ValueError, match=re.escape(deny)):
        AllowList(text="", deny=deny)


def test_a_name_with_one_inner_address_is_refused(fetch: Fetch) -> None:
    error = failure(fetch, "http://mixed.example/a", allow=NOTHING, resolver=lambda *_: ["93.184.216.34", "10.0.0.1"])
    assert error.code == "SourceNotAllowed"
    assert "10.0.0.1" in error.message


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(fetch: Fetch) -> None:
    asked: list[str] = []
    hosts: list[str | None] = []

    def resolver(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    def handle(request: BaseHTTPRequestHandler) -> None:
        hosts.append(request.headers["Host"])
        answer(request, 200, b"hello")

    with http_server(handle=handle) as url:
        port = url.rpartition(":")[2]
        fetched = fetch(f"http://rebind.example:{port}/a.txt", allow=AllowList(text="127.0.0.1"), resolver=resolver)
        assert fetched.path.read_bytes() == b"hello"
        assert asked == ["rebind.example"]
        assert hosts == [f"rebind.example:{port}"]
        # The second time it is elsewhere, and that is checked.
        error = failure(fetch, f"http://rebind.example:{port}/a", allow=AllowList(text="127.0.0.1"), resolver=resolver)
        assert error.code == "SourceNotAllowed"


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:1/x", "http://[::1]/x", "http://[", "file:///etc/passwd", "s3://team-a/x"]
)
def test_each_redirect_is_checked(fetch: Fetch, target: str) -> None:
    with http_server(handle=lambda request: answer(request, 302, Location=target)) as url:
        assert failure(fetch, f"{url}/a", allow=AllowList(text="127.0.0.1")).code == "SourceNotAllowed"


def test_a_redirect_in_utf_8_is_followed(fetch: Fetch) -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/a":
            answer(request, 302, Location="/é.txt".encode().decode("latin-1"))
        else:
            answer(request, 200, request.path.encode())

    with http_server(handle=handle) as url:
        assert fetch(f"{url}/a").path.read_bytes() == b"/%C3%A9.txt"


def test_redirects_are_followed_and_counted(fetch: Fetch) -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        number = int(request.path.rpartition("/")[2].removesuffix(".txt"))
        if number:
            answer(request, 307, Location=f"/{number - 1}.txt")
        else:
            answer(request, 200, b"there", Content_Type="text/plain; charset=utf-8")

    with http_server(handle=handle) as url:
        fetched = fetch(f"{url}/5.txt")
        assert (fetched.name, fetched.content_type) == ("0.txt", "text/plain; charset=utf-8")
        error = failure(fetch, f"{url}/6.txt")
        assert error.code == "SourceUnavailable"
        assert "redirects" in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "SourceNotFound"),
        (410, "SourceNotFound"),
        (401, "SourceForbidden"),
        (403, "SourceForbidden"),
        (407, "SourceForbidden"),
        (500, "SourceUnavailable"),
        (503, "SourceUnavailable"),
        (206, "SourceUnavailable"),
    ],
)
def test_statuses_have_codes(fetch: Fetch, status: int, code: str) -> None:
    with http_server(handle=lambda request: answer(request, status, b"no")) as url:
        error = failure(fetch, f"{url}/a.pdf?signature=hidden")
    assert error.code == code
    assert "a.pdf" in error.message
    assert "hidden" not in error.message


def raw(text: bytes, *, then: Callable[[BaseHTTPRequestHandler], None] | None = None) -> Any:
    def handle(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(text)
        request.wfile.flush()
        if then:
            then(request)
        request.close_connection = True

    return handle


def drip(request: BaseHTTPRequestHandler) -> None:
    for _ in range(600):
        try:
            request.wfile.write(b"x")
        except OSError:
            return
        time.sleep(0.1)


LYING = {
    "too few bytes": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"), "SourceTruncated"),
    "a chunk that never ends": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this"),
        "SourceTruncated",
    ),
    "an announced giant": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx"), "DocumentTooLarge"),
    "an endless body": (raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (SMALL.max_bytes + 10)), "DocumentTooLarge"),
    "no HTTP": (raw(b"220 smtp ready\r\n"), "SourceUnavailable"),
    "unasked compression": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"),
        "SourceUnavailable",
    ),
    "compression that was uploaded in chunks": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: aws-chunked,gzip\r\nContent-Length: 1\r\n\r\nx"),
        "SourceUnavailable",
    ),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_servers_are_found_out(fetch: Fetch, case: str) -> None:
    handle, code = LYING[case]
    with http_server(handle=handle) as url:
        error = failure(fetch, f"{url}/a.pdf")
    assert error.code == code, error


@pytest.mark.parametrize("coding", ["identity", "aws-chunked", "aws-chunked, identity"])
def test_what_is_no_compression_is_read(fetch: Fetch, coding: str) -> None:
    """Some S3 stores keep how an upload was framed, and say it of the plain bytes."""
    text = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 5\r\n\r\nplain"
    with http_server(handle=raw(text.encode())) as url:
        assert fetch(f"{url}/a.txt").path.read_bytes() == b"plain"


def hang(_: BaseHTTPRequestHandler) -> None:
    time.sleep(60)


HANGING = {
    "no answer": raw(b"", then=hang),
    "a hang in the body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", then=hang),
    "a dripping body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", then=drip),
    "dripping headers": raw(b"HTTP/1.1 200 OK\r\nX: ", then=drip),
}


@pytest.mark.parametrize("case", HANGING)
def test_hanging_servers_are_left_long_before_they_end(fetch: Fetch, case: str) -> None:
    began = time.monotonic()
    with http_server(handle=HANGING[case]) as url:
        error = failure(fetch, f"{url}/a.pdf", limits=IMPATIENT)
    assert error.code == "SourceUnavailable", error
    assert time.monotonic() - began < 45


def test_a_resolver_that_hangs_is_left_in_time(fetch: Fetch) -> None:
    release = threading.Event()

    def resolver(*_: Any) -> list[str]:
        release.wait(60)
        return []

    error = failure(fetch, "http://slow.example/a", resolver=resolver, limits=IMPATIENT)
    release.set()
    assert error.code == "SourceUnavailable"


def test_a_name_that_does_not_resolve_or_a_closed_port(fetch: Fetch) -> None:
    def resolver(*_: Any) -> list[str]:
        raise OSError("no such name")

    assert failure(fetch, "http://none.example/a", resolver=resolver).code == "SourceUnavailable"
    assert failure(fetch, "http://127.0.0.1:1/a").code == "SourceUnavailable"


def test_proxies_of_the_environment_are_not_used(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with http_server(handle=lambda request: answer(request, 200, b"direct")) as url:
        assert fetch(f"{url}/a").path.read_bytes() == b"direct"
