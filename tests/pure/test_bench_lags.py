"""How late a job's status is, from what two watches show."""

from __future__ import annotations

from ingestion_bench.lags import Lags
from ingestion_crds import JsonObject
from ingestion_crds import constants as names

SEGMENTS, PUBLISH = "process_segments", "publish_version"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def child(uid: str, stage: str, *conditions: str) -> JsonObject:
    labels = {names.LABEL_JOB_UID: uid, names.LABEL_STAGE: stage}
    status = {"conditions": [{"type": kind, "status": "True"} for kind in conditions]} if conditions else {}
    return {"object": {"metadata": {"labels": labels}, "status": status}}


def job(uid: str, *ended: str, phase: str = "processing", generation: int = 1) -> JsonObject:
    jobs = [
        {"stage": stage} | ({"completionTime": "2026-01-01T00:00:00Z"} if stage in ended else {})
        for stage in (SEGMENTS, PUBLISH)
    ]
    status = {"phase": phase, "attempts": [{"generation": generation, "jobs": jobs}]}
    return {"object": {"metadata": {"uid": uid}, "status": status}}


def test_a_jobs_lag_is_the_longest_from_an_end_until_it_is_first_seen_in_status() -> None:
    clock = Clock()
    lags = Lags(count=2, clock=clock)
    events = [
        (0.0, lags.recorded, job("a", SEGMENTS, PUBLISH, phase="partial_failure", generation=0), False),
        (1.0, lags.ended, child("a", SEGMENTS), False),
        (2.0, lags.ended, child("a", SEGMENTS, "SuccessCriteriaMet"), False),
        (3.0, lags.ended, child("a", SEGMENTS, "SuccessCriteriaMet", "Complete"), False),
        (4.0, lags.ended, child("a", SEGMENTS, "SuccessCriteriaMet", "Complete"), False),
        (4.0, lags.recorded, job("a"), False),
        (5.0, lags.recorded, job("a", SEGMENTS), False),
        (6.0, lags.recorded, job("a", SEGMENTS), False),
        (7.0, lags.ended, child("a", PUBLISH, "Complete"), False),
        (7.5, lags.recorded, job("a", SEGMENTS, PUBLISH), False),
        (8.0, lags.recorded, job("a", SEGMENTS, PUBLISH, phase="completed"), False),
        (10.0, lags.ended, child("b", SEGMENTS, "Failed"), False),
        (10.5, lags.recorded, job("b", SEGMENTS), False),
        (12.0, lags.ended, child("b", PUBLISH, "Complete"), True),
        (15.0, lags.recorded, job("b", SEGMENTS, PUBLISH, phase="completed"), True),
    ]
    for clock.now, take, event, done in events:
        assert take(event) is done
    assert lags.longest == [2.0, 3.0]
