"""Embedders: the built-in model, and any OpenAI-compatible endpoint, behind one small protocol.

Vectors come back as float32, one row per text, of length 1 (a text without a known token has the zero vector).
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import string
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from ingestion_crds.constants import BUILTIN_DIMENSIONS, BUILTIN_MODEL, BUILTIN_PROVIDER
from ingestion_crds.errors import Code
from ingestion_crds.logs import redact

from ingestion_worker.attempt import EmbeddingSpec
from ingestion_worker.outcome import WorkerError

if TYPE_CHECKING:
    import httpx
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BuiltinEmbedder", "Embedder", "EmbeddingSpec", "HttpEmbedder", "RequestLimits", "make_embedder"]

BATCH_TEXTS: Final = 64
# A batch also ends at so many characters: memory depends on them, not on the number of texts.
BATCH_CHARACTERS: Final = 200_000
RETRY_AFTER_CAP_SECONDS: Final = 60.0
_RATE_LIMITED_FACTOR: Final = 10
_MESSAGE_CHARACTERS: Final = 500
# A float in JSON takes about 22 characters; servers may indent.
_BYTES_PER_NUMBER: Final = 40
_RESPONSE_SLACK: Final = 2**20
# A gateway's own timeout, and that TEI's backend failed: out of memory, as a rule.
_TOO_MUCH_STATUSES: Final = frozenset({408, 424, 504})
_TRANSIENT_STATUSES: Final = frozenset({408, 424, 425})


class Embedder(Protocol):
    """What turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return an array of shape (len(texts), dimensions) of unit vectors.

        Raises:
            WorkerError: one of the Embedding… codes.
        """

    def close(self) -> None:
        """Give back what it holds open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """How long an endpoint is asked for one batch.

    A model on CPUs may take minutes for one, or to be loaded, and some servers end that when their client leaves.

    Args:
        connect_seconds, read_seconds: timeouts of one request; total_seconds: of one request with its body.
        tries: requests at most, the first included.
        slow_seconds: what fails after so long is not asked for again as it was.
        backoff_seconds: the first pause; doubled each time, with jitter. Longer if a Retry-After says so, and ten times
            as long after 429: quotas are of a minute, and not all who refuse over one say when to come back.
        pause_seconds: a pause at most.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 300.0
    total_seconds: float = 600.0
    tries: int = 5
    slow_seconds: float = 120.0
    backoff_seconds: float = 0.5
    pause_seconds: float = RETRY_AFTER_CAP_SECONDS


def make_embedder(
    *, spec: EmbeddingSpec, url: str | None = None, api_key: str | None = None, limits: RequestLimits | None = None
) -> Embedder:
    """Return the embedder for a job's spec.

    Args:
        spec: provider, model and dimensions.
        url: base URL of the provider's endpoint; not used for the built-in one.
        api_key: bearer token, where the provider has one.
        limits: of what is asked of the endpoint.

    Raises:
        WorkerError: EmbeddingRejected for a model or dimensions that the built-in embedder does not have;
            InvalidAttempt when the URL of another provider is missing.
    """
    if spec.provider == BUILTIN_PROVIDER:
        return BuiltinEmbedder(spec=spec)
    if not url:
        raise WorkerError("InvalidAttempt", f"no URL is configured for the embedding provider {spec.provider!r}")
    return HttpEmbedder(spec=spec, url=url, api_key=api_key, limits=limits)


def batches(*, texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut texts into batches of at most BATCH_TEXTS texts and about BATCH_CHARACTERS characters, in order."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) >= BATCH_TEXTS or characters + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


class _TooMuchError(WorkerError):
    """A batch was refused, or took the endpoint too long: it may take fewer texts at a time."""


class _AgainError(WorkerError):
    """The endpoint may answer if it is asked again.

    Args:
        code, message: as in every WorkerError.
        status: that it answered; None if it did not.
        retry_after: the pause in seconds that it asks for, if any.
    """

    def __init__(
        self, code: Code, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.status = status
        self.retry_after = retry_after


class BuiltinEmbedder:
    """The static 256-dimension model whose weights come with the `wordllama` package; no network.

    Reads the package's files without importing it: its import takes a quarter of a second and sets up logging.
    Without padding: a batch padded to its longest text took gigabytes.

    Args:
        spec: what is asked for.

    Raises:
        WorkerError: EmbeddingRejected for a model or dimensions that it does not have.
    """

    def __init__(self, *, spec: EmbeddingSpec) -> None:
        if spec.model != BUILTIN_MODEL or spec.dimensions != BUILTIN_DIMENSIONS:
            raise WorkerError(
                "EmbeddingRejected",
                f"the built-in embedder has the model {BUILTIN_MODEL} with {BUILTIN_DIMENSIONS} dimensions,"
                f" not {spec.model} with {spec.dimensions}",
            )
        self._dimensions = spec.dimensions
        self._lock = threading.Lock()
        self._loaded: tuple[Any, NDArray[np.float16]] | None = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the normalised mean of each text's token vectors."""
        import numpy as np

        tokenizer, weights = self._load()
        result = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        row = 0
        for batch in batches(texts=map(_normal, texts)):
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                if encoding.ids:
                    result[row] = weights[encoding.ids].astype(np.float32).mean(axis=0)
                row += 1
        return _unit(result)

    def close(self) -> None:
        """Nothing is held open."""

    def _load(self) -> tuple[Any, NDArray[np.float16]]:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load_builtin()
            return self._loaded


def _normal(text: str) -> str:
    """Return a text in the Unicode form NFKC, with one space between words.

    Most tokenizers do so themselves. This one knows the beginning of a word only by the space before it: after a line
    end or a tab, decomposed or with ligatures, a word would be other tokens than in a query.

    Source: https://github.com/google/sentencepiece/blob/master/doc/normalization.md (nmt_nfkc, the default)
    """
    spaced = " ".join(unicodedata.normalize("NFKC", text).split())
    # A lone surrogate has no UTF-8 form, which the tokenizer needs.
    return spaced.encode("utf-8", "replace").decode()


def _load_builtin() -> tuple[Any, NDArray[np.float16]]:
    import importlib.util
    from pathlib import Path

    from safetensors import safe_open
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise WorkerError("Internal", "the built-in embedder's package is not installed in this image")
    folder = Path(spec.origin).parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(str(folder / "weights" / "l2_supercat_256.safetensors"), framework="np") as file:
        weights: NDArray[np.float16] = file.get_tensor("embedding.weight")
    return tokenizer, weights


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the vectors with length 1; a zero vector, of a text of which the model knows nothing, stays zero."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    result: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return result


class HttpEmbedder:
    """An OpenAI-compatible endpoint: `POST {url}/embeddings`.

    Safe to share between threads. No proxy or credentials are taken from the environment. What endpoints differ in:

    - `dimensions` is sent only once a model has answered with longer or shorter vectors than asked for, as many servers
      refuse the field; the first text is asked for alone, so that no other is asked for twice.
    - `encoding_format` is left out once it is refused: Voyage, and LiteLLM before some models, take none that says
      `float`, while some servers behind LiteLLM want one.
    - A batch that is refused is asked for in halves: many servers take fewer texts at a time and none says how many,
      and one text that is too long must not fail the others. So is one that took too long, which it would again.

    Args:
        spec: model and dimensions to ask for.
        url: base URL.
        api_key: bearer token or None.
        limits: of each batch.
        sleep: how to pause.

    Raises:
        WorkerError: EmbeddingUnauthorized when the key holds characters that no header can.

    Source: https://platform.openai.com/docs/api-reference/embeddings/create
    """

    def __init__(
        self,
        *,
        spec: EmbeddingSpec,
        url: str,
        api_key: str | None = None,
        limits: RequestLimits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        from ingestion_worker.tls import tls_context

        self._spec = spec
        self._url = url.rstrip("/") + "/embeddings"
        self._limits = limits or RequestLimits()
        self._sleep = sleep
        self._send_dimensions: bool | None = None  # until a model has answered
        self._send_format = True
        self._most_texts = BATCH_TEXTS
        headers = {"Accept": "application/json"}
        self._key = (api_key or "").strip(string.whitespace)  # a Secret made from a file has its line end
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            self._client = httpx.Client(
                headers=headers,
                timeout=httpx.Timeout(self._limits.read_seconds, connect=self._limits.connect_seconds),
                follow_redirects=False,
                trust_env=False,
                verify=tls_context(),
            )
        except (ValueError, UnicodeError) as error:
            raise WorkerError("EmbeddingUnauthorized", "the embedding key holds characters no header can") from error
        # Closed with the last reference: whoever drops an embedder cannot know when other threads are done with it.
        self._close = weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close the connections that are kept open between batches."""
        self._close()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the endpoint's vectors, normalised, in the order of the texts."""
        import numpy as np

        result = np.zeros((len(texts), self._spec.dimensions), dtype=np.float32)
        row = 0
        for batch in batches(texts=texts):
            result[row : row + len(batch)] = self._embed_batch(batch)
            row += len(batch)
        return result

    def _embed_batch(self, batch: list[str]) -> NDArray[np.float32]:
        if self._send_dimensions is None and len(batch) > 1:
            return self._embed_parts(batch, 1)
        if len(batch) > self._most_texts:
            return self._embed_halves(batch)
        try:
            return self._embed_at_once(batch)
        except _TooMuchError:
            if len(batch) == 1:
                raise
        vectors = self._embed_halves(batch)
        self._most_texts = min(self._most_texts, (len(batch) + 1) // 2)  # apart they were taken: it was their number
        return vectors

    def _embed_halves(self, batch: list[str]) -> NDArray[np.float32]:
        return self._embed_parts(batch, (len(batch) + 1) // 2)

    def _embed_parts(self, batch: list[str], cut: int) -> NDArray[np.float32]:
        import numpy as np

        return np.concatenate([self._embed_batch(batch[:cut]), self._embed_batch(batch[cut:])])

    def _embed_at_once(self, batch: list[str]) -> NDArray[np.float32]:
        wanted = self._spec.dimensions
        sent = bool(self._send_dimensions)  # for this request: another thread may change it meanwhile
        vectors = self._ask(batch, send_dimensions=sent)
        wrong = f"the model {self._spec.model} gives vectors of {vectors.shape[1]} dimensions, not {wanted}"
        if vectors.shape[1] != wanted and not sent:
            try:
                vectors = self._ask(batch, send_dimensions=True)
            except _TooMuchError as error:
                if error.code != "EmbeddingRejected":
                    raise
                raise WorkerError("EmbeddingInvalid", f"{wrong}; asked for those, {error.message}") from error
            sent = True
        if vectors.shape[1] != wanted:
            raise WorkerError("EmbeddingInvalid", wrong)
        self._send_dimensions = sent
        return vectors

    def _ask(self, batch: list[str], *, send_dimensions: bool) -> NDArray[np.float32]:
        """Return the vectors that the endpoint gives, of whatever length."""
        body: dict[str, Any] = {"model": self._spec.model, "input": batch}
        if send_dimensions:
            body["dimensions"] = self._spec.dimensions
        if self._send_format:
            body["encoding_format"] = "float"
        try:
            content = self._request(body, len(batch))
        except WorkerError as error:
            about_format = error.code == "EmbeddingRejected" and "encoding_format" in error.message
            if not about_format or "encoding_format" not in body:
                raise
            self._send_format = False
            return self._ask(batch, send_dimensions=send_dimensions)
        return self._vectors(content, len(batch))

    def _request(self, body: dict[str, Any], count: int) -> bytes:
        """Return the body of the answer; ask again where that may help."""
        tries = 0
        while True:
            tries += 1
            began = time.monotonic()
            try:
                return self._post(json.dumps(body).encode("utf-8"), count)
            except _AgainError as error:
                slow = time.monotonic() - began >= self._limits.slow_seconds
                if slow or (error.status in _TOO_MUCH_STATUSES and count > 1):
                    raise _TooMuchError(error.code, error.message) from error
                if tries >= self._limits.tries:
                    raise
                self._sleep(self._pause(tries, error))

    def _pause(self, tries: int, error: _AgainError) -> float:
        first = self._limits.backoff_seconds * (_RATE_LIMITED_FACTOR if error.status == 429 else 1)
        pause = first * 2.0 ** (tries - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        return min(self._limits.pause_seconds, max(pause, error.retry_after or 0.0))

    def _post(self, body: bytes, count: int) -> bytes:
        import httpx

        try:
            status, headers, content = self._exchange(body, count)
        except httpx.InvalidURL as problem:
            raise WorkerError("EmbeddingRejected", "the embedding endpoint's URL is not valid") from problem
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as problem:
            raise WorkerError("EmbeddingRejected", f"the endpoint cannot be asked: {_text(problem)}") from problem
        except httpx.HTTPError as problem:
            message = f"the embedding endpoint did not answer: {_text(problem)}"
            raise _AgainError("EmbeddingUnavailable", message) from problem
        status = _said_status(status=status, content=content)
        if status != 200:
            raise _refusal(status=status, headers=headers, said=_server_message(content=content, key=self._key))
        return content

    def _exchange(self, body: bytes, count: int) -> tuple[int, httpx.Headers, bytes]:
        import httpx

        limit = _RESPONSE_SLACK + count * max(self._spec.dimensions, 4096) * _BYTES_PER_NUMBER
        deadline = time.monotonic() + self._limits.total_seconds
        content = bytearray()
        headers = {"Content-Type": "application/json"}
        with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            # Without a chunk size: httpx would gather that much first, and wait for ever for a server that drips.
            for piece in response.iter_bytes():
                content += piece
                if len(content) > limit:
                    raise WorkerError("EmbeddingInvalid", f"the endpoint's answer is over {limit} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer within {self._limits.total_seconds:g} s")
            return response.status_code, response.headers, bytes(content)

    def _vectors(self, content: bytes, count: int) -> NDArray[np.float32]:
        import numpy as np

        try:
            rows = json.loads(content)["data"]
            ordered: list[Any] = [None] * count
            for position, row in enumerate(rows):
                index = row.get("index", position)
                if not isinstance(index, int) or not 0 <= index < count or ordered[index] is not None:
                    raise ValueError(f"index {index!r} is repeated or out of range")
                ordered[index] = row["embedding"]
            if len(rows) != count:
                raise ValueError(f"{len(rows)} vectors for {count} texts")
            vectors = np.asarray(ordered, dtype=np.float32)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise WorkerError("EmbeddingInvalid", f"the endpoint's answer is not usable: {_text(error)}") from error
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise WorkerError("EmbeddingInvalid", "the endpoint's vectors hold something that is no finite number")
        return _unit(vectors.astype(np.float64))  # in float32 the squares of honest numbers can be 0 or infinite


def _refusal(*, status: int, headers: Mapping[str, str], said: str) -> WorkerError:
    message = f"the embedding endpoint answered {status}: {said}"
    if status == 429 or status >= 500 or status in _TRANSIENT_STATUSES:
        code: Code = "EmbeddingRateLimited" if status == 429 else "EmbeddingUnavailable"
        retry_after = parse_retry_after(value=headers.get("retry-after"), now=time.time())
        return _AgainError(code, message, status=status, retry_after=retry_after)
    if status in (401, 403):
        return WorkerError("EmbeddingUnauthorized", message)
    return _TooMuchError("EmbeddingRejected", message)


def _said_status(*, status: int, content: bytes) -> int:
    """Return the status that is meant: some gateways answer 200 and have what went wrong behind them in the body."""
    if status != 200 or b'"embedding"' in content:
        return status
    try:
        error = json.loads(content).get("error")
    except (ValueError, AttributeError, RecursionError):
        return status
    if not error:
        return status
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 503


def _server_message(*, content: bytes, key: str) -> str:
    """Return what the endpoint says went wrong, without the key, which some quote."""
    text = content[:4096].decode("utf-8", "replace")
    try:
        body = json.loads(content)
        found = body.get("error", body.get("message", body.get("detail", text)))
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError, RecursionError):
        pass
    text = redact(" ".join(text.split()))
    return (text.replace(key, "***") if key else text)[:_MESSAGE_CHARACTERS]


def parse_retry_after(*, value: str | None, now: float) -> float | None:
    """Return the seconds a Retry-After header asks for (a number or a date), capped; None if it says nothing.

    Source: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(RETRY_AFTER_CAP_SECONDS, float(value[:6]))
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(RETRY_AFTER_CAP_SECONDS, max(0.0, moment - now))


def _text(error: BaseException) -> str:
    return redact(str(error) or type(error).__name__)[:_MESSAGE_CHARACTERS]
