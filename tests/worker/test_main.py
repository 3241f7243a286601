"""A container's whole life: its checks, its exit code and the message it leaves."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingestion_crds import logs
from ingestion_crds.constants import PERMANENT_EXIT_CODES
from ingestion_crds.errors import ERROR_CODES
from ingestion_worker.attempt import parse_attempt
from ingestion_worker.main import run_container
from ingestion_worker.outcome import WorkerError, encode_termination, failure_message, write_termination
from ingestion_worker.search import live_versions
from ingestion_worker.store import Store, StoreConfig
from support.worker_builders import Worker, answer, attempt_document, container_env, http_server, pdf, sentences


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/team-a"


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    """A container is a process of its own; here its level and handlers would stay for the tests behind it."""
    logger = logging.getLogger("ingestion_worker")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def run(*, env: dict[str, str], command: str) -> tuple[int, dict[str, Any]]:
    code = run_container(command=command, env=env)
    return code, json.loads(Path(env["INGESTION_TERMINATION_LOG"]).read_bytes())


def written(url: str) -> list[str]:
    return [entry.key for entry in Store(config=StoreConfig(url=url)).list(prefix="kb")]


def test_the_three_commands_do_what_the_contract_says(tmp_path: Path, url: str, worker: Worker) -> None:
    uri = worker.upload(data=pdf(pages=[sentences(count=5)] * 5))
    document = attempt_document(document__source__uri=uri)
    code, message = run(
        env=container_env(folder=tmp_path / "a", document=document, store_url=url), command="prepare_document"
    )
    assert code == 0
    assert set(message) == {"mode", "segments", "version"}
    assert set(message["version"]) == {"id", "number", "planHash"}
    later = {"version": message["version"], "totalSegments": 3, "document__source__uri": uri}
    for index in range(2):
        document = attempt_document(stage="process_segments", segments="0,2", **later)
        env = container_env(
            folder=tmp_path / f"s{index}", document=document, store_url=url, JOB_COMPLETION_INDEX=str(index)
        )
        code, done = run(env=env, command="process_segment")
        assert (code, done["segment"]) == (0, [0, 2][index])
        assert done["chunks"] > 0
    document = attempt_document(stage="publish_version", **later)
    env = container_env(folder=tmp_path / "p", document=document, store_url=url)
    code, failed = run(env=env, command="publish_version")
    assert (code, failed["code"], failed["retryable"]) == (1, "SegmentsMissing", True)


@pytest.mark.parametrize(
    "change",
    [
        {"INGESTION_JOB_UID": "other"},
        {"INGESTION_GENERATION": "1"},
        {"INGESTION_STAGE": "publish_version"},
        {"INGESTION_MAP_DIGEST": "0" * 32},
        {"INGESTION_ATTEMPT_FILE": "/nonexistent"},
    ],
)
def test_a_file_that_is_not_the_named_one_writes_nothing(
    tmp_path: Path, url: str, worker: Worker, change: dict[str, str]
) -> None:
    document = attempt_document(document__source__uri=worker.upload(data=b"The zebra.", name="a.txt"))
    env = {**container_env(folder=tmp_path / "a", document=document, store_url=url), **change}
    code, message = run(env=env, command="prepare_document")
    assert (code, message["code"], message["retryable"]) == (1, "AttemptMismatch", True)
    assert written(url) == []


def test_a_document_over_the_size_in_the_environment_is_refused(tmp_path: Path, url: str, worker: Worker) -> None:
    document = attempt_document(document__source__uri=worker.upload(data=b"The zebra.", name="a.txt"))
    env = container_env(folder=tmp_path / "a", document=document, store_url=url, INGESTION_MAX_SOURCE_BYTES="9")
    code, message = run(env=env, command="prepare_document")
    assert (code, message["code"], message["retryable"]) == (69, "DocumentTooLarge", False)
    assert "10 bytes; at most 9" in message["message"]
    env = container_env(folder=tmp_path / "b", document=document, store_url=url, INGESTION_MAX_SOURCE_BYTES="10")
    assert run(env=env, command="prepare_document")[0] == 0


def test_a_command_for_another_stage_writes_nothing(tmp_path: Path, url: str) -> None:
    env = container_env(folder=tmp_path / "a", document=attempt_document(), store_url=url)
    assert run(env=env, command="publish_version")[1]["code"] == "AttemptMismatch"
    assert run(env=env, command="dance")[0] == ERROR_CODES["InvalidAttempt"].exit_code
    assert written(url) == []


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "Pod"},
        {"apiVersion": "v2"},
        {"generation": -1},
        {"generation": True},
        {"mode": "Fast"},
        {"pipeline": None},
        {"pipeline__chunkOverlap": 300},
        {"knowledgeBase": "../other"},
        {"document__id": "a/b"},
        {"job__uid": "a..b"},
        {"job__namespace": None},
        {"job__created": "yesterday"},
        {"document__source": {"uri": "s3://team-a/a", "sha256": "short"}},
        {"version": None},
        {"version": {"id": "../x"}},
        {"stage": "publish_version", "version": {"id": "x", "number": 0, "planHash": "x"}},
        {"stage": "publish_version", "version": {"id": "x"}},
    ],
)
def test_an_attempt_that_is_not_understood_is_permanent(change: dict[str, Any]) -> None:
    with pytest.raises(WorkerError) as caught:
        parse_attempt(document=attempt_document(**change))
    assert caught.value.code == "InvalidAttempt"
    assert caught.value.exit_code in PERMANENT_EXIT_CODES


def test_a_segment_outside_the_set_is_refused(tmp_path: Path, url: str) -> None:
    later = {"version": {"id": "v", "number": 1, "planHash": "p"}, "totalSegments": 3, "stage": "process_segments"}
    for index, segments in (("5", "0-2"), ("x", "0-2"), ("0", None), ("0", "7"), ("0", "zero")):
        document = attempt_document(segments=segments, **later)
        env = container_env(folder=tmp_path / "a", document=document, store_url=url, JOB_COMPLETION_INDEX=index)
        assert run(env=env, command="process_segment")[1]["code"] == "InvalidAttempt"


def test_a_permanent_error_has_its_exit_code(tmp_path: Path, url: str, worker: Worker) -> None:
    document = attempt_document(document__source__uri=worker.upload(data=pdf(pages=["x"], password="p")))
    code, message = run(
        env=container_env(folder=tmp_path / "a", document=document, store_url=url), command="prepare_document"
    )
    assert code == 65
    assert message == {"code": "DocumentEncrypted", "message": "handbook.pdf needs a password", "retryable": False}


def test_sigterm_ends_at_once_with_interrupted(tmp_path: Path, url: str) -> None:
    def hang(request: Any) -> None:
        time.sleep(60)

    with http_server(handle=hang) as base:
        document = attempt_document(document__source__uri=f"{base}/a.pdf")
        env = container_env(folder=tmp_path / "a", document=document, store_url=url, INGESTION_SOURCE_ALLOW="127.0.0.1")
        command = [sys.executable, "-m", "ingestion_worker.main", "prepare_document"]
        with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            assert (line["stage"], line["generation"], line["message"]) == ("prepare_document", 0, "begun")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=45) == 1  # long before the source gives up
    assert json.loads(Path(env["INGESTION_TERMINATION_LOG"]).read_bytes())["code"] == "Interrupted"


def test_a_whole_run_as_a_process_with_a_remote_embedder(tmp_path: Path, url: str, worker: Worker) -> None:
    keys: set[str | None] = set()

    def vectors(request: Any) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        keys.add(request.headers["Authorization"])
        rows = [{"index": i, "embedding": [1.0, 2.0]} for i in range(len(body["input"]))]
        answer(request, 200, json.dumps({"data": rows}).encode())

    with http_server(handle=vectors) as base:
        embedding = {"provider": "local", "model": "m", "dimensions": 2}
        uri = worker.upload(data=b"The zebra.", name="a.txt")
        document = attempt_document(document__source__uri=uri, pipeline__embedding=embedding)
        env = container_env(
            folder=tmp_path / "a",
            document=document,
            store_url=url,
            INGESTION_EMBEDDING_URL=base,
            INGESTION_EMBEDDING_API_KEY="sk-hidden",
        )
        command = [sys.executable, "-m", "ingestion_worker.main", "prepare_document"]
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["job_uid"] for line in lines} == {document["job"]["uid"]}
    assert keys == {"Bearer sk-hidden"}
    assert b"sk-hidden" not in done.stdout + done.stderr
    live = live_versions(store=worker.store, knowledge_base=document["knowledgeBase"])
    assert [version.embedding.provider for version in live] == ["local"]


def test_no_process_of_the_same_user_reads_a_workers_credentials() -> None:
    """A parser that a document has taken over is one. From root nothing is hidden, so here nobody is root."""
    code = """if True:
        import ctypes, os, subprocess
        from ingestion_worker import main

        def read(**_):
            found = subprocess.run(["cat", f"/proc/{os.getpid()}/environ"], capture_output=True).stdout
            print(b"sk-hidden" in found)

        if os.geteuid() == 0:
            os.setgid(65532)
            os.setuid(65532)
            ctypes.CDLL(None).prctl(4, 1)  # as it is when a container starts
        read()
        main.run_container = read
        main.main(["publish_version"])
    """
    env = {**os.environ, "INGESTION_EMBEDDING_API_KEY": "sk-hidden"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_container_logs_what_it_is_told_to(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def levels(**more: str) -> set[str]:
        env = container_env(folder=tmp_path, document=attempt_document(), store_url=url, **more)
        code, message = run(env=env, command="prepare_document")
        assert (code > 0, message["code"]) == (True, "SourceNotFound")
        return {json.loads(line)["level"] for line in capsys.readouterr().out.splitlines()}

    assert levels() == {"info", "error"}
    assert levels(INGESTION_LOG_LEVEL="error") == {"error"}


def test_no_command_imports_at_its_start_what_takes_long() -> None:
    code = (
        "import sys; import ingestion_worker.main, ingestion_worker.context;"
        "import ingestion_worker.prepare, ingestion_worker.segment, ingestion_worker.publish;"
        "print(*[name for name in sys.argv[1:] if name in sys.modules])"
    )
    heavy = ["pyarrow", "numpy", "pypdfium2", "lxml", "selectolax", "tokenizers", "wordllama", "httpx", "httpcore"]
    heavy += ["pydantic", "kubernetes", "kopf"]
    of_others = ["ingestion_crds.job", "ingestion_worker.search", "ingestion_worker.budget"]
    done = subprocess.run([sys.executable, "-c", code, *heavy, *of_others], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@given(st.text(), st.integers(200, 4096))
def test_a_termination_message_is_valid_json_within_the_limit(text: str, limit: int) -> None:
    message = failure_message(error=WorkerError("Internal", text * 50))
    data = encode_termination(message=message, limit=limit)
    assert len(data) <= limit
    back = json.loads(data)
    assert back["code"] == "Internal"
    assert back["retryable"] is True


def test_a_termination_log_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    write_termination(message={"a": 1}, env={"INGESTION_TERMINATION_LOG": str(tmp_path / "none" / "x")})


def test_log_lines_are_json_and_hold_no_secrets() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter(context={"job_uid": "u"}))
    logger = logging.getLogger("ingestion_test")
    logger.addHandler(handler)
    try:
        logger.error(
            "GET http://me:hunter2@host/ with Bearer sk-hidden failed",
            extra={"code": "X", "error": "at http://me:hunter3@host"},
        )
    finally:
        logger.removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert (line["job_uid"], line["code"], line["level"]) == ("u", "X", "error")
    assert "hunter" not in stream.getvalue()
    assert "sk-hidden" not in stream.getvalue()
