"""Why pods are not created, asked for all Jobs of a namespace at once."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.kube import ApiError, KubeClient
from ingestion_operator.cluster import KubeCluster
from ingestion_operator.creation_failures import CreationFailures

NOW = datetime(2026, 1, 1, 0, 5, tzinfo=UTC)


class Events:
    """An API server of which only Events are asked.

    Args:
        seconds: the clock's; a request takes so long.
        answers: pages, or what goes wrong, one after the other; the last one again and again.
    """

    def __init__(self, *answers: list[list[JsonObject]] | ApiError, seconds: float) -> None:
        self._answers = list(answers)
        self._seconds = seconds
        self.now = 0.0
        self.asked = 0

    async def request(self, _method: str, _path: str, *, query: JsonObject, **_: Any) -> JsonObject:
        page = int(query.get("continue", 0))
        if page == 0:
            self.asked += 1
        self.now += self._seconds
        await asyncio.sleep(0)
        answer = self._answers[min(self.asked, len(self._answers)) - 1]
        if isinstance(answer, ApiError):
            raise answer
        following = str(page + 1) if page + 1 < len(answer) else ""
        return {"items": answer[page], "metadata": {"continue": following}}

    def failures(self) -> CreationFailures:
        return CreationFailures(cluster=KubeCluster(cast(KubeClient, self)), monotonic=lambda: self.now)


def event(uid: str, message: str, time: str = "2026-01-01T00:00:00Z") -> JsonObject:
    return {"involvedObject": {"uid": uid}, "message": message, "lastTimestamp": time}


async def test_the_newest_event_of_each_job_counts_on_whatever_page() -> None:
    pages = [[event("a", "old")] * 500] * 9 + [[event("b", "quota"), event("a", "new", "2026-01-01T00:00:01Z")]]
    failures = Events([*pages, [event("a", "older")]], seconds=0.0).failures()
    assert await failures.of(namespace="team-a", child_uid="a", now=NOW) == "new"
    assert await failures.of(namespace="team-a", child_uid="b", now=NOW) == "quota"
    assert await failures.of(namespace="team-a", child_uid="c", now=NOW) is None


async def test_an_event_that_names_no_job_hides_none() -> None:
    """Anybody may write one: of the object it is about only little is asked for."""
    nobody: JsonObject = {**event("", "?"), "involvedObject": {"kind": "Job"}}
    failures = Events([[nobody, event("a", "quota")]], seconds=0.0).failures()
    assert await failures.of(namespace="team-a", child_uid="a", now=NOW) == "quota"


@pytest.mark.parametrize("year", ["0000", "10000"])
async def test_an_event_of_an_odd_year_hides_none(year: str) -> None:
    """Anybody may write one, and Kubernetes has years that Python has not."""
    odd = event("b", "?", f"{year}-01-01T00:00:00Z")
    failures = Events([[odd, event("a", "quota")]], seconds=0.0).failures()
    assert await failures.of(namespace="team-a", child_uid="a", now=NOW) == "quota"
    assert await failures.of(namespace="team-a", child_uid="b", now=NOW) is None


async def test_what_strangers_write_fills_no_memory() -> None:
    """A tenant may write Events, and with one emoji in a text Python keeps four bytes for each of its characters."""
    filled = "😀" + "a" * 100_000
    events = [event(f"uid-{number}", filled) for number in range(20)]
    events += [event(filled + str(number), "?") for number in range(20)]
    failures = Events([[*events, event("a", "quota")]], seconds=0.0).failures()
    assert await failures.of(namespace="team-a", child_uid="a", now=NOW) == "quota"
    said = await failures.of(namespace="team-a", child_uid="uid-0", now=NOW)
    assert said is not None
    assert said.startswith("😀aaa")
    known = failures._known["team-a"].messages
    assert known is not None
    assert sum(sys.getsizeof(text) for item in known.items() for text in item) < 100_000


async def test_of_events_without_end_some_are_not_read() -> None:
    """All looks at jobs of a namespace wait for its first list, and they keep workers from other namespaces."""
    events = Events([[event(f"uid-{page}-{number}", "?") for number in range(500)] for page in range(120)], seconds=0.1)
    failures = events.failures()
    assert await failures.of(namespace="team-a", child_uid="uid-0-0", now=NOW) == "?"
    assert events.now == pytest.approx(100 * 0.1)
    known = failures._known["team-a"].messages
    assert known is not None
    assert len(known) == 5_000


async def test_of_a_long_message_the_beginning_is_kept() -> None:
    failures = Events([[event("a", "quota" * 1_000)]], seconds=0.0).failures()
    said = await failures.of(namespace="team-a", child_uid="a", now=NOW)
    assert said == ("quota" * 1_000)[:512]


async def test_questions_before_the_first_answer_wait_for_it() -> None:
    events = Events([[event("a", "quota"), event("b", "quota")]], seconds=0.1)
    failures = events.failures()
    both = await asyncio.gather(*(failures.of(namespace="team-a", child_uid=uid, now=NOW) for uid in ("a", "b")))
    assert both == ["quota", "quota"]
    assert events.asked == 1


async def test_slow_answers_are_asked_for_less_often_but_once_a_minute() -> None:
    events = Events([[event("a", "quota")]], seconds=30.0)
    failures = events.failures()
    for _ in range(120):
        await failures.of(namespace="team-a", child_uid="a", now=NOW)
        events.now += 5.0
    assert 5 <= events.asked <= 10


async def test_an_error_is_told_and_soon_tried_again() -> None:
    gone = ApiError(status=0, reason="NoAnswer", message="timeout")
    events = Events(gone, [[event("a", "quota")]], seconds=30.0)
    failures = events.failures()
    for _ in range(2):
        with pytest.raises(ApiError):
            await failures.of(namespace="team-a", child_uid="a", now=NOW)
    events.now += 3.0
    assert await failures.of(namespace="team-a", child_uid="a", now=NOW) == "quota"


async def test_what_was_told_long_ago_is_over() -> None:
    undated = {"lastTimestamp": None, "eventTime": "2026-01-01T00:04:00.123456Z"}
    bare = {"lastTimestamp": None, "metadata": {"creationTimestamp": "2026-01-01T00:04:00Z"}}
    events = [
        event("old", "mended", "2025-12-31T23:54:59Z"),
        event("new", "quota", "2025-12-31T23:55:01Z"),
        {**event("undated", "quota"), **undated},
        {**event("bare", "quota"), **bare},
    ]
    failures = Events([events], seconds=0.0).failures()
    uids = ("old", "new", "undated", "bare")
    told = [await failures.of(namespace="team-a", child_uid=uid, now=NOW) for uid in uids]
    assert told == [None, "quota", "quota", "quota"]
