"""Cutting text into chunks, with what a reader needs to find each one in the document again."""

from __future__ import annotations

import re
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter

# A segment has at most 16 Mi characters and a chunk takes at least one, so a chunk's index stays unique.
CHUNKS_PER_SEGMENT = 2**24
# For each chunk's end the splitter searches all that follows up to the next line end, so it is given a part at a time.
_WINDOW_CHUNKS = 16
_WINDOW_CHARACTERS = 4096
# The splitter's time grows with the square of the length of white space, so no chunk spans more than this.
_GAP: Final = re.compile(r"(?<!\s)\s{513,}")
_PAGE_BREAK = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a document.

    Args:
        content: the text.
        start, end: characters; from the beginning of `page` where there are pages, else of the canonical text.
        page, page_end: pages where it begins and ends, counted from 1; None where there are none.
    """

    content: str
    start: int
    end: int
    page: int | None
    page_end: int | None


def split(*, text: str, chunk_size: int, overlap: int) -> list[tuple[int, str]]:
    """Cut text at the largest units that fit (paragraphs, sentences, words); return (offset, chunk) in characters.

    Takes time in proportion to the text, whatever is in it. The chunks are those that the splitter makes of the whole
    text or, where there are more than 512 characters of white space, of the whole text on each side of them.

    Args:
        text: what to cut.
        chunk_size: characters of a chunk at most.
        overlap: characters that a chunk may share with the one before.

    Source: https://docs.rs/text-splitter
    """
    from semantic_text_splitter import TextSplitter

    splitter = TextSplitter(chunk_size, overlap=overlap)
    edges = [0, *(edge for gap in _GAP.finditer(text) for edge in gap.span()), len(text)]
    return [
        (first + offset, content)
        for first, last in zip(edges[::2], edges[1::2], strict=True)
        for offset, content in _in_windows(splitter=splitter, text=text[first:last], chunk_size=chunk_size)
    ]


def _in_windows(*, splitter: TextSplitter, text: str, chunk_size: int) -> list[tuple[int, str]]:
    window = max(_WINDOW_CHARACTERS, _WINDOW_CHUNKS * chunk_size)
    chunks: list[tuple[int, str]] = []
    start = 0
    while True:
        end = start + window
        found = [(start + offset, content) for offset, content in splitter.chunk_indices(text[start:end])]
        # The next window begins with the last chunk of the one before: what follows a chunk depends on it.
        if chunks and chunks[-1][0] == start:
            chunks.pop()
        if end >= len(text):
            return chunks + found
        # Near the end of a window chunks are cut as if the text ended there.
        certain = [(offset, content) for offset, content in found if offset + 2 * chunk_size < end]
        chunks += certain
        start = max(
            (offset for offset, _ in certain if offset > start),
            default=min((offset for offset, _ in found if offset > start), default=end),
        )


def tail(*, text: str, overlap: int) -> str:
    """Return the last `overlap` characters or a few more, beginning with a whole word where there is one nearby."""
    if overlap == 0 or len(text) <= overlap:
        return text if overlap else ""
    cut = len(text) - overlap
    space = text.rfind(" ", max(0, cut - 64), cut)
    return text[space + 1 if space >= 0 else cut :]


def chunk_text(*, text: str, before: str, start: int, chunk_size: int, overlap: int) -> list[Chunk]:
    """Cut a run of text.

    Args:
        text: the segment's own text.
        before: the text before it; its tail is prefixed, so that a sentence over the border is found whole.
        start: offset of `text` in the canonical text, in characters.
        chunk_size, overlap: characters.
    """
    prefix = tail(text=before, overlap=overlap)
    origin = start - len(prefix)
    return [
        Chunk(content=content, start=origin + offset, end=origin + offset + len(content), page=None, page_end=None)
        for offset, content in split(text=prefix + text, chunk_size=chunk_size, overlap=overlap)
        if offset + len(content) > len(prefix)
    ]


def chunk_pages(*, pages: Sequence[str], before: str, first: int, chunk_size: int, overlap: int) -> list[Chunk]:
    """Cut a range of pages.

    Args:
        pages: the texts of the segment's own pages.
        before: the text of the page before them, or an empty string.
        first: number of the first own page, counted from 0.
        chunk_size, overlap: characters.
    """
    prefix = tail(text=before.rstrip(), overlap=overlap)
    parts: list[tuple[int, int, str]] = []  # page counted from 1, offset of the part in its page, text
    if prefix:
        parts.append((first, len(before.rstrip()) - len(prefix), prefix + _PAGE_BREAK))
    own = sum(len(text) for _, _, text in parts)
    parts.extend((first + 1 + index, 0, text + _PAGE_BREAK) for index, text in enumerate(pages))
    starts: list[int] = []
    position = 0
    for _, _, text in parts:
        starts.append(position)
        position += len(text)
    chunks = []
    for offset, content in split(text="".join(text for _, _, text in parts), chunk_size=chunk_size, overlap=overlap):
        end = offset + len(content)
        if end <= own:
            continue
        page, shift, _ = parts[bisect_right(starts, offset) - 1]
        begin = offset - starts[bisect_right(starts, offset) - 1] + shift
        page_end = parts[bisect_right(starts, end - 1) - 1][0]
        chunks.append(Chunk(content=content, start=begin, end=begin + len(content), page=page, page_end=page_end))
    return chunks


def chunk_id(*, version_id: str, segment: int, position: int) -> str:
    """Return a chunk's id, the same on every run.

    Args:
        version_id: the version's UUID.
        segment: the segment's index.
        position: the chunk's place in its segment, from 0.
    """
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{version_id}/{segment}/{position}"))


def chunk_index(*, segment: int, position: int) -> int:
    """Return a chunk's place in the document's order, known without the segments before it."""
    return segment * CHUNKS_PER_SEGMENT + position
