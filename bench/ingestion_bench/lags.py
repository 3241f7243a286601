"""How late the status of a job is: from the end of its Job, as a watch shows it, until a watch shows that recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase, Stage

_TERMINAL: Final = ("Complete", "Failed")


class Lags:
    """Of jobs that are retried once, each with a Job of segments and one that publishes, which end well.

    Both watches are read by one process, so by one clock.

    Args:
        count: how many jobs.
        clock: in seconds.
    """

    def __init__(self, *, count: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._count = count
        self._clock = clock
        self._ended: dict[tuple[str, str], float] = {}
        self._recorded: dict[tuple[str, str], float] = {}

    def ended(self, event: JsonObject) -> bool:
        """Take in an event of a retry's Job; true once all have ended."""
        labels, conditions = event["object"]["metadata"]["labels"], event["object"]["status"].get("conditions", ())
        if any(item["type"] in _TERMINAL and item["status"] == "True" for item in conditions):
            self._ended.setdefault((labels[names.LABEL_JOB_UID], labels[names.LABEL_STAGE]), self._clock())
        return len(self._ended) == 2 * self._count

    def recorded(self, event: JsonObject) -> bool:
        """Take in an event of an IngestionJob; true once all are completed."""
        uid, status = event["object"]["metadata"]["uid"], event["object"]["status"]
        attempt = status["attempts"][-1]
        if attempt["generation"] > 0:
            for record in attempt["jobs"]:
                if record["stage"] == Stage.SEGMENTS and "completionTime" in record:
                    self._recorded.setdefault((uid, Stage.SEGMENTS), self._clock())
            if status["phase"] == Phase.COMPLETED:
                self._recorded.setdefault((uid, Stage.PUBLISH), self._clock())
        return len(self._recorded) == 2 * self._count

    @property
    def longest(self) -> list[float]:
        """The longest of each job, in seconds, once all are there; below 0 where the watch of Jobs was later."""
        found: dict[str, float] = {}
        for (uid, stage), moment in self._recorded.items():
            lag = moment - self._ended[uid, stage]
            found[uid] = max(lag, found.get(uid, lag))
        return list(found.values())
