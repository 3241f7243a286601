"""The table of a fault campaign adds up tallies, and says by its exit code whether all was survived."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import campaign


def test_tallies_of_one_fault_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setenv(campaign.ENV_RESULTS, str(results))
    campaign.record("connection reset", injected=3, survived=3, invariants=[2, 1])
    campaign.record("410 Gone", injected=1, survived=1, invariants=[5])
    campaign.record("connection reset", injected=2, survived=2, invariants=[2, 8])
    assert campaign.main([str(results)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| fault            | injected | survived | invariants checked |",
        "| ---------------- | -------: | -------: | ------------------ |",
        "| connection reset |        5 |        5 | 1, 2, 8            |",
        "| 410 Gone         |        1 |        1 | 5                  |",
        "| all              |        6 |        6 |                    |",
    ]
    campaign.record("410 Gone", injected=1, survived=0, invariants=[5])
    assert campaign.main([str(results)]) == 1


def test_a_campaign_without_results_fails(tmp_path: Path) -> None:
    assert campaign.main([str(tmp_path / "missing.jsonl")]) == 1


def test_a_fault_that_was_never_injected_is_not_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setenv(campaign.ENV_RESULTS, str(results))
    campaign.record("connection reset", injected=3, survived=3, invariants=[1])
    campaign.record("410 Gone", injected=0, survived=0, invariants=[5])
    assert campaign.main([str(results)]) == 1


def test_the_table_goes_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{campaign.BEGIN}\nold\n{campaign.END}\nafter\n")
    monkeypatch.setattr(campaign, "PAGE", page)
    monkeypatch.setenv(campaign.ENV_RESULTS, str(tmp_path / "results.jsonl"))
    campaign.record("410 Gone", injected=1, survived=1, invariants=[5])
    assert campaign.main([str(tmp_path / "results.jsonl"), "--write"]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| 410 Gone |" in text
    assert "old" not in text
