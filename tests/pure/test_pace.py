"""How often running jobs are looked at when there are many."""

from __future__ import annotations

from ingestion_operator.pace import rest_for


def test_a_few_jobs_are_looked_at_about_once_a_second() -> None:
    assert rest_for(0) == rest_for(1) == rest_for(12) == 1.2


def test_many_jobs_share_the_looks() -> None:
    assert rest_for(100) == 10.0
    assert rest_for(1_000) == 100.0


def test_no_job_is_forgotten_for_more_than_two_minutes() -> None:
    assert rest_for(1_000_000) == 120.0
