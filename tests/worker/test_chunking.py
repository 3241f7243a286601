"""Chunks: nothing is lost, nothing is cut in two at a border, positions are right."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingestion_worker.chunking import chunk_pages, chunk_text, split, tail
from ingestion_worker.parsing.pdf import clean_text
from ingestion_worker.prepare import cut_text
from semantic_text_splitter import TextSplitter

WORDS = st.lists(st.sampled_from(["zebra", "harbour", "ß", "中文字", "a.", "\n", "\n\n", "𝔘nicode"]), max_size=300)


@settings(max_examples=60, deadline=None)
@given(words=WORDS, size=st.integers(1, 120))
def test_cuts_cover_the_text_without_cutting_a_character(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], size: int
) -> None:
    text = " ".join(words)
    path = tmp_path_factory.mktemp("cuts") / "text"
    path.write_bytes(text.encode())
    cuts = list(cut_text(path=path, characters=size))
    data = text.encode()
    parts = [data[cut.start : cut.end].decode() for cut in cuts]
    assert "".join(parts) == text
    assert all(0 < len(part) <= size for part in parts)
    position = 0
    for cut, part in zip(cuts, parts, strict=True):
        assert cut.character == position
        position += len(part)


def test_a_cut_prefers_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    cuts = list(cut_text(path=path, characters=100))
    data = path.read_bytes()
    assert all(data[cut.end - 1 : cut.end] == b"\n" for cut in cuts)


def test_a_line_without_an_end_is_cut_between_words(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("harbour lighthouse " * 1000)
    data = path.read_bytes()
    assert all(data[cut.end - 1 : cut.end] == b" " for cut in cut_text(path=path, characters=100))


@settings(max_examples=60, deadline=None)
@given(words=WORDS, overlap=st.integers(0, 30), at=st.integers(0, 2000))
def test_positions_point_at_the_content(words: list[str], overlap: int, at: int) -> None:
    text = " ".join(words)
    at = min(at, len(text))
    chunks = chunk_text(text=text[at:], before=text[:at], start=at, chunk_size=60, overlap=overlap)
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.content
        assert chunk.end > at
        assert len(chunk.content) <= 60
    covered = set()
    for chunk in chunks:
        covered.update(range(chunk.start, chunk.end))
    assert all(position in covered for position in range(at, len(text)) if not text[position].isspace())


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(
            ["zebra", "ß", "中文字。", "a.", "Mr. Smith", "1.5", "e\u0301", "(b)", "x" * 30, " " * 300, "\n", "\n\n"]
        ),
        max_size=300,
    ),
    glue=st.sampled_from(["", " "]),
    size=st.integers(1, 60),
    share=st.floats(0, 1),
)
def test_text_is_cut_in_windows_as_it_would_be_whole(words: list[str], glue: str, size: int, share: float) -> None:
    text, overlap = glue.join(words), min(size - 1, int(size * share))
    whole = TextSplitter(size, overlap=overlap).chunk_indices(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingestion_worker.chunking._WINDOW_CHARACTERS", 64)
        patch.setattr("ingestion_worker.chunking._WINDOW_CHUNKS", 4)
        found = split(text=text, chunk_size=size, overlap=overlap)
    assert all(text[offset : offset + len(content)] == content for offset, content in found)
    covered = {position for offset, content in found for position in range(offset, offset + len(content))}
    assert all(position in covered for position in range(len(text)) if not text[position].isspace())
    if " " * 300 not in words:
        assert found == whole


@pytest.mark.parametrize("text", ["x", "x ", "中", "Some words. ", "A line.\n", "\n", " ", "x" * 999 + " " * 99_999])
@pytest.mark.parametrize("overlap", [0, 100, 500])
def test_time_grows_with_the_text_alone(monkeypatch: pytest.MonkeyPatch, text: str, overlap: int) -> None:
    given: list[int] = []

    class Watched:
        def __init__(self, size: int, *, overlap: int) -> None:
            self._splitter = TextSplitter(size, overlap=overlap)

        def chunk_indices(self, text: str) -> list[tuple[int, str]]:
            given.append(len(text))
            return self._splitter.chunk_indices(text)

    monkeypatch.setattr("semantic_text_splitter.TextSplitter", Watched)
    text = text * (300_000 // len(text))
    split(text=text, chunk_size=1000, overlap=overlap)
    assert max(given) <= 16_000
    assert sum(given) < len(text) * 1.25


@pytest.mark.parametrize("size", [1000, 32_768])
@pytest.mark.parametrize("blank", ["\n \n", " \n", "\t\n", "\u3000\n", "\u2028"])
def test_blank_lines_take_no_more_time_than_text(blank: str, size: int) -> None:
    run = (blank * 512)[:512]
    for line in (blank, f"word{run}"):

        def seconds(characters: int, line: str = line) -> float:
            text = f"Title{line * (characters // len(line))}End"
            began = time.process_time()
            assert [content[-3:] for _, content in split(text=text, chunk_size=size, overlap=100)][-1] == "End"
            return time.process_time() - began

        seconds(10)  # loads what it needs
        assert seconds(16_000) < 8 * max(0.02, seconds(4_000))


@pytest.mark.parametrize("size", [200, 1000])
def test_white_space_that_no_chunk_spans_is_all_that_is_between_chunks(size: int) -> None:
    for white in (512, 513, 100_000):
        text = f"{'One. ' * 90}{chr(10) * white}{'Two. ' * 90}"
        found = split(text=text, chunk_size=size, overlap=50)
        assert all(text[offset : offset + len(content)] == content for offset, content in found)
        covered = {position for offset, content in found for position in range(offset, offset + len(content))}
        assert all(position in covered for position in range(len(text)) if not text[position].isspace())
        assert (found == TextSplitter(size, overlap=50).chunk_indices(text)) or white > 512


def test_a_sentence_over_a_border_is_found_whole() -> None:
    before = "An opening. " * 20 + "The zebra crossed the"
    after = "border at night. " + "Then it slept. " * 20
    chunks = chunk_text(text=after, before=before + " ", start=len(before) + 1, chunk_size=200, overlap=60)
    assert any("The zebra crossed the border at night." in chunk.content for chunk in chunks)


def test_a_sentence_over_a_page_border_is_found_whole_with_its_pages() -> None:
    before = "An opening. " * 20 + "The zebra crossed the"
    pages = ["border at night.", "Another page."]
    chunks = chunk_pages(pages=pages, before=before, first=4, chunk_size=200, overlap=60)
    first = chunks[0]
    assert "zebra crossed the\n\nborder at night." in first.content
    assert (first.page, first.page_end) == (4, 6)
    assert before[first.start :].startswith(first.content[:10])
    assert chunk_pages(pages=["", "  "], before=before, first=4, chunk_size=200, overlap=60) == []


def test_without_overlap_nothing_is_repeated() -> None:
    pages = ["one two", "three"]
    chunks = chunk_pages(pages=pages, before="zero", first=1, chunk_size=8, overlap=0)
    assert [(chunk.content, chunk.page, chunk.start) for chunk in chunks] == [("one two", 2, 0), ("three", 3, 0)]


@given(st.text(max_size=300), st.integers(0, 100))
def test_a_tail_is_a_suffix_of_the_overlap_and_a_little_more(text: str, overlap: int) -> None:
    end = tail(text=text, overlap=overlap)
    assert text.endswith(end)
    assert min(len(text), overlap) <= len(end) <= overlap + 64


def test_text_of_pages_is_cleaned() -> None:
    assert clean_text(text="exam\x02\r\nple\x00 one\rtwo\ufffe") == "example one\ntwo"
