"""What one segment costs in the worker, beside the library calls that it comes to."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import secrets
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.digest import map_digest
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob, Segments, Version, format_time
from ingestion_operator.children import attempt_file
from ingestion_worker.outcome import ENV_TERMINATION_LOG
from ingestion_worker.store import Store, StoreConfig
from local_cluster import binaries, ports
from local_cluster.process import Process
from reportlab.pdfgen.canvas import Canvas

from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import body
from ingestion_bench.segment_run import INDEX, PAGES
from ingestion_bench.stand import NAMESPACE, Plane, Stand

_SEGMENTS: Final = 4
_LINES: Final = 45
_WORDS: Final = 12
_WORK: Final = "segment: CPU of the work"
_START: Final = "segment: CPU of start, imports, model and parser's start"
_KEY: Final = "handbook.pdf"


class Segment:
    """A prepared document on an S3 server.

    Args:
        document: the PDF.
        store: its bucket.
        env: the container's, for process_segments.
    """

    def __init__(self, *, document: Path, store: Store, env: Mapping[str, str]) -> None:
        self._document = document
        self._store = store
        self._env = env

    async def ours(self) -> Sample:
        """Run the worker: its work alone, and the whole container."""
        work = await self._work("worker")
        await self._forget()
        whole = await asyncio.to_thread(container, "process_segment", self._env)
        await self._forget()
        return {_WORK: work, _START: whole - work}

    async def theirs(self) -> Sample:
        """Make the library calls."""
        return {_WORK: await self._work("libraries")}

    async def _work(self, what: str) -> float:
        command = [sys.executable, "-m", "ingestion_bench.segment_run", what, str(self._document)]
        done = await asyncio.to_thread(subprocess.run, command, env=self._env, stdout=subprocess.PIPE, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])

    async def _forget(self) -> None:
        """Remove the output, or the next run would find it and do nothing."""
        outputs = [entry.key for entry in self._store.list(prefix="kb") if entry.key.endswith(".parquet")]
        assert outputs, "the worker wrote no output"
        for key in outputs:
            self._store.delete(key=key)


def container(command: str, env: Mapping[str, str]) -> float:
    """Run the worker as a container does, and return its CPU seconds, its parser's among them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "ingestion_worker.main", command], env=env, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def handbook(path: Path, *, pages: int) -> None:
    """Write a PDF of pages full of words, the same each time."""
    chance = random.Random(7)
    words = ["".join(chance.choices("aeilmnorstu", k=chance.randint(2, 9))) for _ in range(4_000)]
    canvas = Canvas(str(path), invariant=True)
    for _ in range(pages):
        for line in range(_LINES):
            canvas.drawString(40, 800 - 16 * line, " ".join(chance.choices(words, k=_WORDS)) + ".")
        canvas.showPage()
    canvas.save()


@asynccontextmanager
async def _s3(folder: Path) -> AsyncIterator[StoreConfig]:
    """Run the store of the chart's default, with a bucket."""
    (folder / "buckets" / NAMESPACE).mkdir(parents=True)
    port = ports.free(count=1)[0]
    access, secret = "bench", secrets.token_hex(16)
    process = Process(
        name="versitygw",
        command=[
            str(binaries.path(name="versitygw")),
            "--port",
            f"127.0.0.1:{port}",
            "--quiet",
            "posix",
            str(folder / "buckets"),
        ],
        log=folder / "versitygw.log",
        environment={"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret},
    )
    process.start()
    try:
        while True:
            process.check()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            await asyncio.sleep(0.05)
        yield StoreConfig(
            url=f"s3://{NAMESPACE}",
            endpoint=f"http://127.0.0.1:{port}",
            region="us-east-1",
            access_key_id=access,
            secret_access_key=secret,
        )
    finally:
        await asyncio.to_thread(process.stop)


def _environment(
    folder: Path, config: StoreConfig, *, job: IngestionJob, stage: Stage, segments: IndexSet
) -> dict[str, str]:
    """Write an attempt's file, as the operator does, and return the environment of its container."""
    text = attempt_file(job=job, stage=stage, generation=0, segments=segments)
    file = folder / f"{stage.value}.json"
    file.write_text(text)
    assert config.endpoint is not None
    assert config.access_key_id is not None
    assert config.secret_access_key is not None
    return {
        "PATH": os.environ["PATH"],
        names.ENV_ATTEMPT_FILE: str(file),
        names.ENV_JOB_UID: job.metadata.uid,
        names.ENV_GENERATION: "0",
        names.ENV_STAGE: stage.value,
        names.ENV_MAP_DIGEST: map_digest(text.encode()),
        names.ENV_COMPLETION_INDEX: str(INDEX),
        names.ENV_STORE_URL: config.url,
        ENV_TERMINATION_LOG: str(folder / "termination-log"),
        names.ENV_STORE_ENDPOINT: config.endpoint,
        names.ENV_STORE_REGION: "us-east-1",
        names.STORE_ACCESS_KEY: config.access_key_id,
        names.STORE_SECRET_KEY: config.secret_access_key,
    }


async def _prepared(folder: Path, config: StoreConfig, job: IngestionJob) -> IngestionJob:
    """Run prepare_document, and return the job with the version that it made."""
    env = _environment(folder, config, job=job, stage=Stage.PREPARE, segments=IndexSet())
    await asyncio.to_thread(container, "prepare_document", env)
    said = json.loads((folder / "termination-log").read_text())
    version = Version(**{"id": said["version"]["id"], "number": said["version"]["number"]})
    version = version.model_copy(update={"plan_hash": said["version"]["planHash"]})
    assert said["segments"] == _SEGMENTS, said
    status = job.status.model_copy(update={"version": version, "segments": Segments(total=said["segments"])})
    return job.model_copy(update={"status": status})


async def _duel(stand: Stand) -> AsyncIterator[Duel]:
    folder = stand.folder
    document = folder / _KEY
    handbook(document, pages=PAGES * _SEGMENTS)
    async with _s3(folder) as config:
        store = Store(config=config)
        store.put_file(key=_KEY, path=document)
        wanted = body(name="handbook", namespace=NAMESPACE, segmentation={"pagesPerSegment": PAGES})
        now = format_time(datetime.now(UTC))
        wanted["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now}
        job = await _prepared(folder, config, IngestionJob.model_validate(wanted))
        everything = IndexSet.span(_SEGMENTS)
        env = _environment(folder, config, job=job, stage=Stage.SEGMENTS, segments=everything)
        segment = Segment(document=document, store=store, env=env)
        yield Duel(ours=segment.ours, theirs=segment.theirs)


register(
    name="segment",
    about=f"one segment of {PAGES} pages in the worker, on an S3 server",
    baseline="parse, split, embed, encode and PUT by the libraries alone",
    measures=[
        Measure(what=_WORK, unit="s", budget=Budget(at_most=2.0)),
        Measure(what=_START, unit="s"),
    ],
    run=_duel,
    plane=Plane(nodes=0),
)
