"""The page on batches: its example is one that the models understand."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from ingestion_crds.batch import MAX_DOCUMENTS_TEXT_BYTES, BatchSpec
from ingestion_crds.constants import MAX_DOCUMENTS

PAGE = (Path(__file__).parents[2] / "docs" / "batches.md").read_text()


def test_the_example_is_a_batch() -> None:
    [text] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    spec = yaml.safe_load(text)["spec"]
    assert [document.title for document in BatchSpec.model_validate(spec).documents] == ["Pump", "Valve"]


def test_the_bounds_are_those_of_the_crd() -> None:
    assert f"{MAX_DOCUMENTS:,} documents" in PAGE
    assert f"{MAX_DOCUMENTS_TEXT_BYTES:,} bytes" in PAGE
