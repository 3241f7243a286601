"""The live version is monotone and whole, whoever races, stalls or is killed, wherever."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.job import version_id_of
from ingestion_worker import history, layout
from ingestion_worker.history import LiveVersion, State, decode_state, encode_state, read_state, sequence_of
from ingestion_worker.outcome import WorkerError
from ingestion_worker.search import live_versions, search_text
from ingestion_worker.store import Store, StoreConfig
from ingestion_worker.versions import claim_number
from support.kill_runner import runner
from support.worker_builders import BUILTIN, DOCUMENT, KB, Worker, builtin, sentences

ROOT = Path(__file__).parents[2]
# What the page calls, over the folder that the bucket is.
FOLDER_AS_S3 = r"""
kubectl() { :; }
s3() {
    url=${!#}
    case $* in
        *-T*) cp --no-clobber "${@: -2:1}" "${url#http://127.0.0.1:7070/}" ;;
        *) prefix=${url##*prefix=}; find "team-a/${prefix//%2F//}" -name '*.json' -printf '<Key>%p</Key>' ;;
    esac
}
"""


def version(*, number: int, generation: int = 0, plan: str = "plan") -> LiveVersion:
    job = f"job-{number}"
    return LiveVersion(
        document_id=DOCUMENT,
        version_id=version_id_of(job),
        number=number,
        job_uid=job,
        generation=generation,
        plan_hash=plan,
        segments=1,
        chunks=1,
        title="T",
        mode="SinglePass",
        embedding=BUILTIN,
        published_at="",
    )


def fence_off(store: Store, *, number: int, generation: int) -> None:
    """Begin an attempt of the job that has this number."""
    job = f"job-{number}"
    history.raise_fence(
        store=store,
        knowledge_base=KB,
        document_id=DOCUMENT,
        job_uid=job,
        version_id=version_id_of(job),
        number=number,
        generation=generation,
    )


def lives(store: Store) -> list[int]:
    """Return the live version number after each entry of the history."""
    prefix = layout.history_prefix(knowledge_base=KB, document_id=DOCUMENT)
    keys = sorted(entry.key for entry in store.list(prefix=prefix))
    assert [sequence_of(key=key) for key in keys] == list(range(1, len(keys) + 1))
    states = [decode_state(data=store.get(key=key), sequence=1) for key in keys]
    return [state.live.number if state.live else 0 for state in states]


def outcome(publish: Callable[[], Any]) -> str:
    try:
        publish()
    except WorkerError as error:
        return error.code
    return "live"


def test_racing_publishers_are_monotone_and_the_highest_wins(store_config: StoreConfig) -> None:
    store = Store(config=store_config)
    results: dict[int, str] = {}

    def run(number: int) -> None:
        results[number] = outcome(
            lambda: history.publish(store=store, knowledge_base=KB, version=version(number=number))
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 65)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    published = lives(store)
    assert published == sorted(set(published))
    assert published[-1] == 64
    assert sorted(number for number, result in results.items() if result == "live") == published
    assert set(results.values()) <= {"live", "VersionSuperseded"}


def test_no_version_is_published_over_that_of_a_job_that_was_made_later(store_config: StoreConfig) -> None:
    store = Store(config=store_config)

    def publish(number: int, created: str) -> str:
        made = version(number=number)
        return outcome(lambda: history.publish(store=store, knowledge_base=KB, version=made, created=created))

    earlier, later = "2026-01-01T09:59:59Z", "2026-01-01T10:00:00Z"
    assert publish(1, later) == "live"
    fence_off(store, number=9, generation=1)
    assert publish(2, earlier) == "VersionSuperseded"
    assert publish(3, later) == "live"
    # What does not say when its job was made is compared by number, whichever of the two it is.
    assert publish(4, "") == "live"
    assert publish(5, earlier) == "live"
    assert publish(4, later) == "VersionSuperseded"


def test_a_time_in_an_entry_that_is_none_is_refused() -> None:
    with pytest.raises(WorkerError, match="DocumentUnreadable"):
        decode_state(data=encode_state(state=State(created="yesterday")), sequence=1)


def test_an_attempt_below_the_fence_publishes_nothing(store_config: StoreConfig) -> None:
    store = Store(config=store_config)
    fence_off(store, number=7, generation=1)
    late = version(number=7, generation=0, plan="plan-0")
    assert outcome(lambda: history.publish(store=store, knowledge_base=KB, version=late)) == "Fenced"
    assert history.read_state(store=store, knowledge_base=KB, document_id=DOCUMENT).live is None
    retried = version(number=7, generation=1, plan="plan-1")
    assert history.publish(store=store, knowledge_base=KB, version=retried).generation == 1


def test_attempts_that_a_restored_etcd_has_forgotten_are_caught_up_with(store_config: StoreConfig) -> None:
    """Fences stay in the bucket. The message says up to where, and the error's page what it means."""
    store = Store(config=store_config)
    for generation in range(1, 6):
        fence_off(store, number=7, generation=generation)
    for generation in (3, 4):
        with pytest.raises(WorkerError, match="attempt 5 has begun") as late:
            fence_off(store, number=7, generation=generation)
        assert late.value.code == "Fenced"
    fence_off(store, number=7, generation=5)
    assert (
        outcome(lambda: history.publish(store=store, knowledge_base=KB, version=version(number=7, generation=5)))
        == "live"
    )
    assert "etcd" in ERROR_CODES["Fenced"].remedy


def test_racing_attempts_of_one_job_publish_once_and_none_below_a_fence(store_config: StoreConfig) -> None:
    store = Store(config=store_config)
    order: list[tuple[str, int]] = []

    def run(generation: int) -> None:
        def attempt() -> None:
            fence_off(store, number=7, generation=generation)
            live = version(number=7, generation=generation, plan=f"plan-{generation}")
            history.publish(store=store, knowledge_base=KB, version=live)

        order.append((outcome(attempt), generation))

    threads = [threading.Thread(target=run, args=(generation,)) for generation in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    prefix = layout.history_prefix(knowledge_base=KB, document_id=DOCUMENT)
    fence = published = 0
    for key in sorted(entry.key for entry in store.list(prefix=prefix)):
        state = decode_state(data=store.get(key=key), sequence=1)
        if state.live is not None:
            assert state.live.generation >= fence
            published += 1
            break
        assert state.fences["job-7"] > fence
        fence = state.fences["job-7"]
    assert published == 1
    assert lives(store).count(7) == 1
    assert {code for code, _ in order} <= {"live", "Fenced"}


def test_racing_pods_of_one_job_get_one_number_and_jobs_get_different_ones(store_config: StoreConfig) -> None:
    store = Store(config=store_config)
    got: list[tuple[str, int]] = []

    def run(job: str) -> None:
        got.append((job, claim_number(store=store, knowledge_base=KB, document_id=DOCUMENT, job_uid=job)))

    threads = [threading.Thread(target=run, args=(f"job-{index % 6}",)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 24
    numbers = dict(got)
    assert len(set(got)) == 6
    assert len(set(numbers.values())) == 6


def test_a_store_that_writes_over_what_is_there_is_refused_by_each_pod(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version could replace a newer one, and nobody would know."""
    put = obstore.put
    modes: list[str | None] = []

    def heedless(*arguments: Any, mode: str | None = None, **options: Any) -> Any:
        modes.append(mode)
        return put(*arguments, **options)

    claim: dict[str, Any] = {"store": any_store, "knowledge_base": KB, "document_id": DOCUMENT}
    with monkeypatch.context() as patched:
        patched.setattr(obstore, "put", heedless)
        for job in ("job-1", "job-1", "job-2"):
            with pytest.raises(WorkerError, match="If-None-Match") as caught:
                claim_number(**claim, job_uid=job)
            assert caught.value.code == "StoreUnavailable"
        assert modes == ["create"] * 6
    assert claim_number(**claim, job_uid="job-1") == claim_number(**claim, job_uid="job-1")


def test_trying_the_store_costs_a_job_one_write_and_one_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []
    for name in ("put", "get", "list"):
        call = getattr(obstore, name)
        monkeypatch.setattr(
            obstore, name, lambda *given, name=name, call=call, **more: (requests.append(name), call(*given, **more))[1]
        )
    claim: dict[str, Any] = {"store": store, "knowledge_base": KB, "document_id": DOCUMENT, "job_uid": "job-1"}
    claim_number(**claim)
    assert requests == ["get", "list", "put", "put", "get", "put", "get"]
    claim_number(**claim)
    assert requests[7:] == ["get"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["fence", "publish"]), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=12
    )
)
def test_any_order_of_fences_and_publishes_keeps_the_rules(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    store = Store(config=StoreConfig(url=f"file://{tmp_path_factory.mktemp('rules')}/b"))
    fences: dict[int, int] = {}
    live = 0
    for kind, number, generation in steps:
        if kind == "fence":
            result = outcome(
                lambda number=number, generation=generation: fence_off(store, number=number, generation=generation)
            )
            if live < number:
                assert result == ("Fenced" if fences.get(number, 0) > generation else "live")
                fences[number] = max(fences.get(number, 0), generation)
            elif live > number:
                assert result == "VersionSuperseded"
        else:
            made = version(number=number, generation=generation)
            result = outcome(lambda made=made: history.publish(store=store, knowledge_base=KB, version=made))
            if live == number:
                assert result == "live"
            elif live > number:
                assert result == "VersionSuperseded"
            elif fences.get(number, 0) > generation:
                assert result == "Fenced"
            else:
                assert result == "live"
                live = number
        state = read_state(store=store, knowledge_base=KB, document_id=DOCUMENT)
        assert (state.live.number if state.live else 0) == live


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("backend", ["folder", "s3"])
def test_a_publish_killed_at_any_operation_leaves_the_old_version_or_the_whole_new_one(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str, after: bool
) -> None:
    config = StoreConfig(url=f"file://{tmp_path}/team-a")
    if backend == "s3":
        config = request.getfixturevalue("s3_server").config(bucket=f"kill-{after}".lower())
    store = Store(config=config)
    worker = Worker(store=store, folder=tmp_path / "scratch")
    old = worker.ingest(document__source__uri=worker.upload(data=b"The old zebra.", name="a.txt"), job__uid="old")
    uri = worker.upload(data=sentences(count=60, tag=" zebra").encode(), name="b.txt")
    prepared = worker.prepare(document__source__uri=uri)
    for segment in range(prepared["segments"]):
        worker.segment(prepared=prepared, segment=segment)
    with runner(config=config, folder=tmp_path) as other:
        for step in range(1, 40):
            changes = {"prepared": prepared, "generation": 1}
            killed = other.killed_at(step=step, after=after, stage="publish", changes=changes)
            live = live_versions(store=store, knowledge_base=KB)[0]
            assert live.version_id in (old["version"]["id"], prepared["version"]["id"])
            hits = search_text(store=store, knowledge_base=KB, text="zebra", limit=50, embedder_for=lambda _: builtin())
            assert {hit.version_id for hit in hits} == {live.version_id}
            if live.version_id != old["version"]["id"]:
                assert len(hits) == live.chunks
            if not killed:
                break
    assert live.version_id == prepared["version"]["id"]
    assert step > 3


def test_a_single_pass_killed_at_any_operation_ends_in_the_same_version(tmp_path: Path) -> None:
    reference = Worker(store=Store(config=StoreConfig(url=f"file://{tmp_path}/ref/team-a")), folder=tmp_path / "r")
    data = sentences(count=20).encode()
    changes = {"document__source__uri": reference.upload(data=data, name="a.txt")}
    expected = reference.prepare(**changes)
    config = StoreConfig(url=f"file://{tmp_path}/team-a")
    store = Store(config=config)
    Worker(store=store, folder=tmp_path / "u").upload(data=data, name="a.txt")
    with runner(config=config, folder=tmp_path) as other:
        for step in range(1, 60):
            killed = other.killed_at(step=step, after=step % 2 == 0, stage="prepare", changes=changes)
            assert len(live_versions(store=store, knowledge_base=KB)) <= 1
            if not killed:
                break
    live = live_versions(store=store, knowledge_base=KB)[0]
    assert (live.version_id, live.plan_hash, live.chunks) == (
        expected["version"]["id"],
        expected["version"]["planHash"],
        expected["chunks"],
    )
    assert live.number == 1
    mine = {e.key: store.get(key=e.key) for e in store.list(prefix="kb") if "/versions/" in e.key}
    theirs = {e.key: reference.store.get(key=e.key) for e in reference.store.list(prefix="kb") if "/versions/" in e.key}
    assert mine == theirs


def test_a_document_that_is_taken_out_stays_out(worker: Worker, tmp_path: Path) -> None:
    """docs/give-a-file.md, run as it stands: whatever pods of its jobs do after that, deleted or not."""
    page = (ROOT / "docs" / "give-a-file.md").read_text().partition("## Take a document out")[2]
    (block,) = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ids = re.search(r"KB=kb/(\S+) DOCUMENT=(\S+)", block)
    assert ids
    knowledge_base = ids[1]
    changes = {"knowledgeBase": knowledge_base, "document__id": ids[2]}
    changes["document__source__uri"] = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    old = {**changes, "job__uid": "5c0e0000-0000-4000-8000-000000000001"}
    new = {**changes, "job__uid": "5c0e0000-0000-4000-8000-000000000002"}
    late = worker.prepare(**old)
    for segment in range(late["segments"]):
        worker.segment(prepared=late, segment=segment, **old)
    published = worker.prepare(**new)
    for segment in range(published["segments"]):
        worker.segment(prepared=published, segment=segment, **new)
    worker.publish(prepared=published, **new)

    commands = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    script = "\n".join(["set -euo pipefail", FOLDER_AS_S3, *commands])
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)

    def live() -> list[int]:
        return [version.number for version in live_versions(store=worker.store, knowledge_base=knowledge_base)]

    def outcomes() -> set[str]:
        return {
            outcome(partial(run, generation=generation, **job))
            for prepared, job in ((late, old), (published, new))
            for run in (worker.prepare, partial(worker.publish, prepared=prepared))
            for generation in (0, 1, 10**9)
        }

    assert outcomes() == {"Fenced"}
    assert live() == []
    worker.ingest(**changes, job__uid="5c0e0000-0000-4000-8000-000000000003")
    assert outcomes() == {"VersionSuperseded"}
    assert live() == [3]


@pytest.mark.parametrize("letter", ["x", "\\", "'", "\u2028", "\U0001f600"])
def test_what_is_written_of_the_longest_names_is_read_again(letter: str) -> None:
    """As long as the CRD lets them be."""
    embedding = replace(BUILTIN, provider="p" * 63, model=letter * 128, dimensions=16_384)
    longest = replace(version(number=1), title=letter * 512, embedding=embedding)
    assert decode_state(data=encode_state(state=State(live=longest)), sequence=1).live == longest


def test_a_copy_that_takes_history_first_lacks_nothing_whatever_is_written_meanwhile(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/operate.md: history is copied after each write of an ingest, the rest right after it, or at the end."""
    bucket, history_of_it = tmp_path / "team-a", Path("kb") / KB / "history"
    old = worker.ingest(document__source__uri=worker.upload(data=b"The old zebra.", name="a.txt"), job__uid="old")
    uri = worker.upload(data=sentences(count=60, tag=" zebra").encode(), name="b.txt")
    at_once: list[Path] = []
    at_the_end: list[Path] = []
    put = obstore.put

    def copy_rest(copy: Path) -> None:
        shutil.copytree(bucket, copy, ignore=shutil.ignore_patterns("history"), dirs_exist_ok=True)

    def copied(*arguments: Any, **options: Any) -> Any:
        done = put(*arguments, **options)
        for copies in (at_once, at_the_end):
            copies.append(tmp_path / f"copy-{len(at_once)}-{len(at_the_end)}")
            shutil.copytree(bucket / history_of_it, copies[-1] / history_of_it)
        copy_rest(at_once[-1])
        return done

    monkeypatch.setattr(obstore, "put", copied)
    new = worker.ingest(document__source__uri=uri)
    monkeypatch.undo()
    assert new["version"]["id"] != old["version"]["id"]
    for copy in at_the_end:
        copy_rest(copy)

    def live_in(copy: Path) -> str:
        store = Store(config=StoreConfig(url=f"file://{copy}"))
        (live,) = live_versions(store=store, knowledge_base=KB)
        hits = search_text(store=store, knowledge_base=KB, text="zebra", limit=100, embedder_for=lambda _: builtin())
        assert {hit.version_id for hit in hits} == {live.version_id}
        assert len(hits) == live.chunks
        return live.version_id

    found = [live_in(copy) for copies in (at_once, at_the_end) for copy in copies]
    assert set(found) == {old["version"]["id"], new["version"]["id"]}
