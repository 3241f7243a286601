"""The object store: a tenant's S3 bucket, or a local folder for tests and development.

One thin class over obstore that speaks the worker's error codes. Keys come from `layout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
import os
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import obstore
from ingestion_crds.constants import (
    ENV_STORE_ENDPOINT,
    ENV_STORE_REGION,
    ENV_STORE_URL,
    STORE_ACCESS_KEY,
    STORE_SECRET_KEY,
    STORE_SESSION_TOKEN,
)
from ingestion_crds.logs import redact
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

from ingestion_worker import layout
from ingestion_worker.outcome import WorkerError
from ingestion_worker.scratch import ScratchFile

# The largest body of one request: it must be sent within the request's timeout on a slow link too.
PIECE_BYTES: Final = 8 * 2**20
_MESSAGE_CHARACTERS: Final = 300
# S3 answers 400 to a token that is over.
_REFUSED: Final = re.compile(r"status code: 40[13]\b|<Code>(ExpiredToken|InvalidToken)</Code>")
# Instead of an answer the connection broke, or time ran out.
_UNANSWERED: Final = re.compile(r"HTTP error: ")
# What S3 says of an error. Beside these two a body may hold the key's id, and what was signed: that is told to nobody.
# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#RESTErrorResponses
_SAID: Final = re.compile(r"<Code>([^<]{1,100})</Code>(?:\s*<Message>([^<]{1,1000})</Message>)?")
# A key's id or a signature, in the words of a store that repeats them.
_LIKE_A_KEY: Final = re.compile(r"(?=[A-Za-z/+=]*[0-9])[A-Za-z0-9/+=]{16,}")
# The request that completes an upload in parts; and the one by which obstore ends an upload that failed, whose error it
# tells instead if that fails too.
_LAST: Final = re.compile(r"(POST|DELETE) \S+[?&]uploadId=")
_FIRST_PAUSE_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 1.0
_SPACE: Final = " \t\r\n"
# Of obstore, for what it did not expect, such as a key with a control character. Neither can be imported.
_PANICS: Final = ("PanicException", "RustPanic")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where a tenant's bucket is and the credentials for it.

    Args:
        url: `s3://BUCKET`, or `file:///path` (the bucket is then the folder's name).
        endpoint: URL of the S3 service; None for AWS.
        region, access_key_id, secret_access_key, session_token: as S3 wants them.
        timeout_seconds: of one request.
        retry_seconds: how long a request that fails is tried again.
        assembly_seconds: how long an object is waited for whose upload is over for the store, but not for us.
    """

    url: str
    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    timeout_seconds: float = 30.0
    retry_seconds: float = 20.0
    assembly_seconds: float = 120.0

    @classmethod
    def from_env(cls, *, env: Mapping[str, str]) -> StoreConfig:
        """Read the configuration from a worker's environment (INGESTION_STORE_URL and AWS_*).

        Raises:
            WorkerError: InvalidAttempt when INGESTION_STORE_URL is missing.
        """
        url = env.get(ENV_STORE_URL)
        if not url:
            raise WorkerError("InvalidAttempt", f"{ENV_STORE_URL} is not set")
        return cls(
            url=url,
            endpoint=env.get(ENV_STORE_ENDPOINT) or None,
            region=env.get(ENV_STORE_REGION) or None,
            access_key_id=env.get(STORE_ACCESS_KEY) or None,
            secret_access_key=env.get(STORE_SECRET_KEY) or None,
            session_token=env.get(STORE_SESSION_TOKEN) or None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object of a listing; its tag is another one when its bytes are."""

    key: str
    tag: str


class ObjectMissingError(Exception):
    """The object is not there; its key is the argument. Callers turn it into the code that fits their stage."""


class Body:
    """An object that was asked for: its size is known, and its bytes are read when they are wanted.

    Args:
        key: the object's.
        result: obstore's.
    """

    def __init__(self, *, key: str, result: Any) -> None:
        self._key = key
        self._result = result
        self.size = int(result.meta["size"])

    def read(self) -> memoryview:
        """Return the bytes, once and without copying them.

        Raises:
            WorkerError: StoreUnavailable.
        """
        with _mapped(self._key):
            return memoryview(self._result.bytes())


class Store:
    """A tenant's bucket. Cheap to make, safe to share between threads.

    Every method raises WorkerError StoreUnavailable or StoreForbidden; reads raise ObjectMissingError.

    Args:
        config: where it is, and the credentials.

    Raises:
        WorkerError: InvalidAttempt for a URL that is none of a store; StoreForbidden without a key for a bucket.
    """

    def __init__(self, *, config: StoreConfig) -> None:
        parts = urlsplit(config.url)
        self._retry_seconds = config.retry_seconds
        self._assembly_seconds = config.assembly_seconds
        self._backend: Any
        if parts.scheme == "s3" and parts.netloc and parts.path in ("", "/"):
            self.bucket = parts.netloc
            self._backend = _s3(config=config, bucket=parts.netloc)
        elif parts.scheme == "file" and not parts.netloc and Path(unquote(parts.path)).name:
            folder = Path(unquote(parts.path))
            self.bucket = folder.name
            self._backend = LocalStore(folder, mkdir=True)
        else:
            raise WorkerError(
                "InvalidAttempt", f"the store's URL is neither s3://BUCKET nor file:///path: {config.url}"
            )

    def get(self, *, key: str) -> bytes:
        """Return an object's bytes; for small objects."""
        return bytes(self.open(key=key).read())

    def open(self, *, key: str, max_bytes: int | None = None) -> Body:
        """Ask for an object, whose bytes are read later, with the same request.

        Raises:
            WorkerError: DocumentTooLarge when it has more than `max_bytes`.
        """
        with _mapped(key):
            body = Body(key=key, result=obstore.get(self._backend, key))
        _check_size(key=key, size=body.size, max_bytes=max_bytes)
        return body

    def get_range(self, *, key: str, start: int, end: int) -> bytes:
        """Return bytes of an object.

        Args:
            key: the object's.
            start, end: the bytes [start, end).
        """
        with _mapped(key):
            return bytes(obstore.get_range(self._backend, key, start=start, end=end))

    def size(self, *, key: str) -> int:
        """Return an object's size in bytes."""
        with _mapped(key):
            return int(obstore.head(self._backend, key)["size"])

    def put(self, *, key: str, data: bytes) -> None:
        """Write an object whole, over whatever is there: for content that is the same whoever writes it."""
        with _mapped(key):
            try:
                obstore.put(self._backend, key, data)
            except (FileNotFoundError, GenericError) as error:
                self._look_for(key=key, size=len(data), error=error)

    def create(self, *, key: str, data: bytes) -> bool:
        """Write an object if there is none; True if this call's bytes are the object's.

        A request repeated after a lost answer finds its own object: equal bytes count as created, so the data must
        hold something unique where two writers must not both win. Keep it small: a refused conditional PUT of
        megabytes ends in a broken connection instead of an answer.
        """
        deadline, pause = time.monotonic() + self._retry_seconds, _FIRST_PAUSE_SECONDS
        with _mapped(key):
            while True:
                try:
                    obstore.put(self._backend, key, data, mode="create", use_multipart=False)
                except (AlreadyExistsError, PreconditionError):
                    try:
                        return bytes(obstore.get(self._backend, key).bytes()) == data
                    except FileNotFoundError:
                        # S3 refuses a writer also while another's request is under way, which may come to nothing.
                        if time.monotonic() + pause > deadline:
                            return False
                except GenericError as error:
                    # obstore takes a conditional PUT for one that must not be repeated, but equal bytes make it safe.
                    if not _UNANSWERED.search(str(error)) or time.monotonic() + pause > deadline:
                        raise
                else:
                    return True
                time.sleep(pause)
                pause *= 2

    def put_file(self, *, key: str, path: Path) -> None:
        """Upload a local file, in parts if it is large; the object appears whole or not at all."""
        with _mapped(key):
            try:
                obstore.put(self._backend, key, path, chunk_size=PIECE_BYTES, max_concurrency=2)
            except (FileNotFoundError, GenericError) as error:
                self._look_for(key=key, size=path.stat().st_size, error=error)

    def download(self, *, key: str, path: Path, max_bytes: int) -> str:
        """Copy an object into a local file, piece by piece, and return its SHA-256 in hex.

        Args:
            key: the object's.
            path: the file.
            max_bytes: the largest that is copied.

        Raises:
            WorkerError: DocumentTooLarge when it has more than `max_bytes`, before anything is copied;
                StoreUnavailable when it is overwritten meanwhile; Internal when the disk does not take it.
        """
        digest = hashlib.sha256()
        with _mapped(key):
            meta = obstore.head(self._backend, key)
            size, tag = int(meta["size"]), meta["e_tag"]
            _check_size(key=key, size=size, max_bytes=max_bytes)
            with ScratchFile(path=path, what=f"the copy of {key}") as file:
                for start in range(0, size, PIECE_BYTES):
                    options: Any = {"range": (start, min(size, start + PIECE_BYTES))}
                    if tag:
                        options["if_match"] = tag
                    piece = bytes(obstore.get(self._backend, key, options=options).bytes())
                    digest.update(piece)
                    file.write(piece)
        return digest.hexdigest()

    def list(self, *, prefix: str) -> Iterator[Entry]:
        """Yield the objects under a folder, in no particular order."""
        with _mapped(prefix):
            for page in obstore.list(self._backend, prefix=f"{prefix}/"):
                for item in page:
                    tag = item["e_tag"] or item["last_modified"].isoformat()
                    yield Entry(key=item["path"], tag=tag)

    def delete(self, *, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        with contextlib.suppress(ObjectMissingError), _mapped(key):
            obstore.delete(self._backend, key)

    async def put_stream(self, *, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Write an object from an asynchronous stream, in parts; an error in the stream leaves no object.

        Raises:
            Exception: whatever the stream raised.
        """
        broken: Exception | None = None
        size = 0

        async def until_it_breaks() -> AsyncIterator[bytes]:
            nonlocal broken, size
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    yield chunk
            except Exception as error:
                broken = error

        # An upload that is aborted leaves those parts in the store that are under way then. So it is ended, and the
        # object deleted.
        pieces = until_it_breaks()
        with _mapped(key):
            try:
                await obstore.put_async(self._backend, key, pieces, chunk_size=PIECE_BYTES, max_concurrency=2)
            except (FileNotFoundError, GenericError) as error:
                if broken is None:
                    left = threading.Event()
                    try:
                        await asyncio.to_thread(self._look_for, key=key, size=size, error=error, left=left)
                    finally:
                        left.set()
        if broken is not None:
            with contextlib.suppress(WorkerError):  # what went wrong first is told
                await asyncio.to_thread(self.delete, key=key)
            raise broken

    def _look_for(self, *, key: str, size: int, error: Exception, left: threading.Event | None = None) -> None:
        """Return if the object of an upload that failed is there all the same; whoever made it, it has the same bytes.

        Once a store has completed an upload it may not know it any more when, for a lost answer, it is asked again
        (MinIO). So does the embedded store while it copies all parts, which may take longer than a request. Once nobody
        waits for the answer any more, `left` ends it: a process does not end before its threads.

        Raises:
            WorkerError: StoreUnavailable, when there is no such upload, and no object.
            Exception: `error`, when it is another.
        """
        unknown = _is_missing(error)
        last = _LAST.search(str(error))
        if not unknown and not last:
            raise error
        left = left or threading.Event()
        deadline = time.monotonic()
        if unknown and last and last[1] == "DELETE":
            deadline += self._assembly_seconds
        while True:
            with contextlib.suppress(FileNotFoundError):
                if obstore.head(self._backend, key)["size"] == size:
                    return
            if time.monotonic() >= deadline or left.wait(_LOOK_SECONDS):
                break
        if unknown:
            raise WorkerError("StoreUnavailable", f"the store failed: {_reason(error)} ({key})") from error
        raise error


def _s3(*, config: StoreConfig, bucket: str) -> S3Store:
    # A Secret that was made of a file, or with `echo`, has a line break at its end, which no key has.
    keys = {
        STORE_ACCESS_KEY: (config.access_key_id or "").strip(_SPACE),
        STORE_SECRET_KEY: (config.secret_access_key or "").strip(_SPACE),
    }
    if missing := [name for name, value in keys.items() if not value]:
        # Without, obstore asks the cloud who the node is, which may be allowed more than the tenant.
        raise WorkerError("StoreForbidden", f"{' and '.join(missing)} of the tenant's Secret: there is nothing in it")
    options = {
        "access_key_id": keys[STORE_ACCESS_KEY],
        "secret_access_key": keys[STORE_SECRET_KEY],
        "endpoint": config.endpoint,
        "region": config.region or "us-east-1",
        "session_token": (config.session_token or "").strip(_SPACE),
    }
    settings: Any = {name: value for name, value in options.items() if value}
    return S3Store(
        bucket,
        config=settings,
        client_options={
            "allow_http": (config.endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=min(5.0, config.timeout_seconds)),
            "timeout": timedelta(seconds=config.timeout_seconds),
            # Whatever the environment says, nothing goes through a proxy: with one named here that environment is not
            # read, and no name and no address is left for this one.
            "proxy_url": "http://unused.invalid",
            "proxy_excludes": "*,0.0.0.0/0,::/0",
        },
        retry_config={
            "max_retries": 5,
            "retry_timeout": timedelta(seconds=config.retry_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )


def _check_size(*, key: str, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise WorkerError("DocumentTooLarge", f"{key} has {size} bytes; at most {max_bytes} are read")


@contextlib.contextmanager
def _mapped(key: str) -> Iterator[None]:
    """Turn obstore's errors into the worker's."""
    try:
        yield
    except (obstore.exceptions.BaseError, OSError) as error:
        if _is_missing(error):
            raise ObjectMissingError(key) from error
        # A listing's refusal has no type of its own.
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or _REFUSED.search(str(error)):
            raise WorkerError("StoreForbidden", f"the store refused: {_reason(error)} ({key})") from error
        raise WorkerError("StoreUnavailable", f"the store failed: {_reason(error)} ({key})") from error
    except BaseException as error:
        if type(error).__name__ not in _PANICS:
            raise
        raise WorkerError("StoreUnavailable", f"the store's client failed at {key}: {_reason(error)}") from error


def _is_missing(error: Exception) -> bool:
    """True when the store says that there is no such object, or upload; for a bucket that is not there it is False."""
    return isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)


def _reason(error: BaseException) -> str:
    """Return why, in the store's own words where it has any: a status holds little more than its code.

    obstore says before it what was asked, with the key and the URL, and after it the same in many lines.
    """
    text = str(error).partition("\n\nDebug source:")[0].strip()
    if said := _SAID.search(text):
        code, message = said.groups()
        told = f"{code}: {_LIKE_A_KEY.sub('***', html.unescape(message))}" if message else code
    else:
        told = text.partition("\n")[0].rpartition(" - ")[2].rstrip(": ")
    return redact(told)[:_MESSAGE_CHARACTERS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An uploaded file: what `spec.document.source` needs of it."""

    uri: str
    key: str
    sha256: str
    size: int


async def put_upload(
    *,
    store: Store,
    document_id: str,
    file_name: str,
    chunks: AsyncIterator[bytes],
    max_bytes: int,
) -> Upload:
    """Stream an upload into the tenant's bucket, hashing and counting on the way; memory stays at a few parts.

    Args:
        store: the tenant's store.
        document_id: the document's UUID.
        file_name: the client's name for the file; made safe for a key.
        chunks: the body.
        max_bytes: the cap in bytes.

    Raises:
        WorkerError: DocumentTooLarge over the cap (nothing stays in the store), StoreUnavailable, StoreForbidden.
    """
    # Of a fresh UUID, so that no upload overwrites another.
    key = layout.upload_key(document_id=document_id, upload_id=str(uuid.uuid4()), file_name=file_name or "document")
    digest = hashlib.sha256()
    size = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal size
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise WorkerError("DocumentTooLarge", f"{os.path.basename(key)} has more than {max_bytes} bytes")
            digest.update(chunk)
            yield chunk

    await store.put_stream(key=key, chunks=counted())
    return Upload(uri=f"s3://{store.bucket}/{key}", key=key, sha256=digest.hexdigest(), size=size)
