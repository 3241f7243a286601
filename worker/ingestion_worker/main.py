"""The console script `ingestion-worker STAGE`: one stage, one termination message, one exit code."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ingestion_crds import logs
from ingestion_crds.constants import (
    ENV_CA_FILE,
    ENV_EMBEDDING_API_KEY,
    ENV_EMBEDDING_URL,
    ENV_GENERATION,
    ENV_JOB_UID,
    ENV_MAX_SOURCE_BYTES,
    ENV_SOURCE_ALLOW,
    ENV_SOURCE_DENY,
    ENV_STAGE,
    MAX_SOURCE_BYTES,
    Stage,
)

from ingestion_worker.attempt import Attempt, read_attempt, segment_index
from ingestion_worker.outcome import WorkerError, failure_message, write_termination

if TYPE_CHECKING:
    from ingestion_worker.context import Context
    from ingestion_worker.embedding import Embedder


LOG: Final = logging.getLogger("ingestion_worker")
_PR_SET_DUMPABLE: Final = 4


def run_stage(*, command: str, env: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """Run one stage and return its termination message.

    Args:
        command: `prepare_document`, `process_segment` or `publish_version`.
        env: the container's environment.
        scratch: an empty folder.

    Raises:
        WorkerError: whatever went wrong.
    """
    attempt = read_attempt(command=command, env=env)
    fields: dict[str, Any] = {
        "job": attempt.job,
        "job_uid": attempt.job_uid,
        "generation": attempt.generation,
        "stage": attempt.stage.value,
    }
    segment = 0
    if attempt.stage is Stage.SEGMENTS:
        segment = segment_index(attempt=attempt, env=env)
        fields["segment"] = segment
    logs.configure(env=env, logger=LOG.name, **fields)
    LOG.info("begun")
    if env.get(ENV_CA_FILE):
        from ingestion_worker.tls import trust

        trust(authorities=Path(env[ENV_CA_FILE]))
    context = _context(attempt=attempt, env=env, scratch=scratch)
    # Each stage imports only what it needs: a pod per segment pays for every import.
    if attempt.stage is Stage.PREPARE:
        from ingestion_worker.prepare import prepare_document

        return prepare_document(context=context)
    if attempt.stage is Stage.SEGMENTS:
        from ingestion_worker.segment import process_segment

        return process_segment(context=context, segment=segment)
    from ingestion_worker.publish import publish_version

    return publish_version(context=context)


def _context(*, attempt: Attempt, env: Mapping[str, str], scratch: Path) -> Context:
    from ingestion_worker.context import Context
    from ingestion_worker.source import AllowList, FetchLimits
    from ingestion_worker.store import Store, StoreConfig

    def embedder() -> Embedder:
        from ingestion_worker.embedding import make_embedder

        return make_embedder(
            spec=attempt.embedding,
            url=env.get(ENV_EMBEDDING_URL),
            api_key=env.get(ENV_EMBEDDING_API_KEY),
        )

    return Context(
        attempt=attempt,
        store=Store(config=StoreConfig.from_env(env=env)),
        scratch=scratch,
        make_embedder=embedder,
        allow=AllowList(text=env.get(ENV_SOURCE_ALLOW, ""), deny=env.get(ENV_SOURCE_DENY, "")),
        fetch_limits=FetchLimits(max_bytes=int(env.get(ENV_MAX_SOURCE_BYTES, MAX_SOURCE_BYTES))),
    )


class _Run(threading.Thread):
    """Runs the stage beside the main thread, which stays free to answer SIGTERM at once."""

    def __init__(self, *, command: str, env: Mapping[str, str], scratch: Path) -> None:
        super().__init__(daemon=True)
        self._command = command
        self._env = env
        self._scratch = scratch
        self.message: dict[str, Any] | None = None
        self.error: WorkerError | None = None

    def run(self) -> None:
        try:
            self.message = run_stage(command=self._command, env=self._env, scratch=self._scratch)
        except WorkerError as error:
            self.error = error
        except MemoryError:
            self.error = WorkerError("DocumentTooComplex", "the container's memory does not suffice for this document")
        except BaseException as error:
            LOG.exception("an error without a name")
            self.error = WorkerError("Internal", f"{type(error).__name__}: {logs.redact(str(error))}")


def run_container(*, command: str, env: Mapping[str, str]) -> int:
    """Run one stage as the container's whole life: report, and return the exit code.

    SIGTERM ends it at once, with `Interrupted`, unless the stage is done. Nothing is tidied up for it: every effect is
    written whole or not at all, so being stopped anywhere is as good as being killed.
    """
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    scratch = Path(tempfile.mkdtemp(prefix="ingestion-"))
    logs.configure(
        env=env,
        logger=LOG.name,
        job_uid=env.get(ENV_JOB_UID),
        generation=env.get(ENV_GENERATION),
        stage=env.get(ENV_STAGE),
    )
    try:
        run = _Run(command=command, env=env, scratch=scratch)
        run.start()
        while run.is_alive() and not stop.is_set():
            run.join(timeout=0.05)
        if run.message is not None:
            write_termination(message=run.message, env=env)
            LOG.info("done", extra={key: value for key, value in run.message.items() if key in ("chunks", "segments")})
            return 0
        error = run.error or WorkerError("Interrupted", "the pod was told to stop before it was done")
        write_termination(message=failure_message(error=error), env=env)
        LOG.error("%s", error.message, extra={"code": error.code, "retryable": error.retryable})
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, previous)
        shutil.rmtree(scratch, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if len(words) == 1 else ""
    # No other process of this user may read the credentials in this one: a document may have taken over its parser.
    # What this process starts is not held back by it.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
    code = run_container(command=command, env=os.environ)
    logging.shutdown()
    if arguments is None:
        # A stage that was interrupted still runs in its thread; leave without waiting for it.
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    main()
