"""How often running jobs are looked at when there are many."""

from __future__ import annotations

import pytest
from ingestion_operator.pace import Pace, rest_for


def test_a_few_jobs_are_looked_at_about_once_a_second() -> None:
    assert rest_for(0) == rest_for(1) == rest_for(12) == 1.2


def test_many_jobs_share_the_looks() -> None:
    assert rest_for(100) == 10.0
    assert rest_for(1_000) == 100.0


def test_no_job_is_forgotten_for_more_than_two_minutes() -> None:
    assert rest_for(1_000_000) == 120.0


def kept(*, every: float) -> Pace:
    """Return what is remembered of a job that runs, and was read whole at 0."""
    pace = Pace(looked=0.0, diagnosed=0.0, every=every, listed=0.0)
    pace.remember({"metadata": {"resourceVersion": "1"}}, now=0.0)
    pace.kept = {}
    return pace


@pytest.mark.parametrize(
    ("every", "at", "counts_alone"), [(1.2, 29, True), (1.2, 31, False), (100, 290, True), (100, 301, False)]
)
def test_a_full_look_is_taken_every_30_seconds_or_instead_of_each_third_where_many_run(
    every: float, at: float, counts_alone: bool
) -> None:
    assert (kept(every=every).look(at) is not None) is counts_alone


@pytest.mark.parametrize(
    ("every", "at", "due"), [(1.2, 119, True), (12, 119, False), (12, 121, True), (100, 900, False)]
)
def test_a_resync_has_all_jobs_listed_again_after_ten_looks(every: float, at: float, due: bool) -> None:
    assert kept(every=every).listing_due(at) is due


def test_all_jobs_are_listed_again_after_trouble() -> None:
    pace = kept(every=100)
    pace.distrust()
    assert pace.listing_due(1)


@pytest.mark.parametrize(("every", "changed", "unchanged"), [(1.2, 1.2, 5), (10, 10, 30), (100, 100, 300)])
def test_a_job_whose_job_has_not_changed_is_looked_at_when_its_pods_are_to_be_asked(
    every: float, changed: float, unchanged: float
) -> None:
    pace = kept(every=every)
    assert pace.idle(0) == unchanged
    pace.stir(0)
    assert pace.idle(0) == changed
    pace.look(changed)
    pace.kept = {}
    assert pace.idle(changed) == unchanged
