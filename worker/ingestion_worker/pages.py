"""How much memory it takes to read a Parquet file, by what its own pages say: Arrow goes by that, whoever wrote it.

Arrow makes room for what a page's header announces before it looks at the page, and reads a list to its end, however
long that is. The footer says how much all of it is too, and Arrow does not compare the two.

Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift,
    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Far more than a file of ours has; what a footer takes in memory is a multiple of its bytes.
_MAX_FOOTER_BYTES: Final = 64 * 1024
_MAX_LISTED: Final = 32
_MAX_PAGES: Final = 10_000
_MAX_HEADER_BYTES: Final = 64 * 1024
# Of each struct in a header; the format has nine.
_MAX_FIELDS: Final = 15
_MAGIC: Final = b"PAR1"
# Arrow would make of it whatever types it names, a thousandfold: the columns' own types are enough.
_ARROW_SCHEMA: Final = b"ARROW:schema"
# The kinds of pages: which field of a header is of that kind, and which field in there is the encoding.
_DICTIONARY: Final = 2
_KINDS: Final = {0: (5, 2), _DICTIONARY: (7, 2), 3: (8, 4)}
# Plain, and by a dictionary under its two numbers. Decoders of others make room for what is said within a page.
_PLAIN: Final = 0
_ENCODINGS: Final = frozenset({_PLAIN, 2, 8})
# What Arrow has of texts at the same time, and for each of them besides; for each number of a dictionary; and for each
# of a list, whose levels and numbers are copied as they grow. All are measured.
_TEXT_COPIES: Final = 6
_TEXT_BYTES: Final = 128
_NUMBER_BYTES: Final = 8
_LISTED_BYTES: Final = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """What the header of a page says.

    Args:
        dictionary: whether it is the values of one.
        plain: whether values are in it, not their places in a dictionary.
        size: bytes that it unpacks to.
        values: how many there are.
    """

    dictionary: bool
    plain: bool
    size: int
    values: int


def read_footer(*, data: memoryview) -> pq.FileMetaData:
    """Return what the end of a Parquet file says, with bounds on what that takes.

    Args:
        data: the file.

    Raises:
        ValueError, OSError: it is no Parquet, or more than any of ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = int.from_bytes(data[-8:-4], "little")
    if size > _MAX_FOOTER_BYTES:
        raise ValueError(f"its footer has {size} bytes; at most {_MAX_FOOTER_BYTES} are read")
    footer = _MAGIC + bytes(data[-8 - size :]).replace(_ARROW_SCHEMA, _ARROW_SCHEMA.lower())
    return pq.ParquetFile(pa.BufferReader(footer), thrift_container_size_limit=_MAX_LISTED).metadata


def reading_bytes(*, data: memoryview, metadata: pq.FileMetaData, columns: Collection[str]) -> int:
    """Return how many bytes it takes at most to read columns in small batches, texts as dictionaries.

    The file's own bytes are not counted.

    Args:
        data: the file.
        metadata: its footer.
        columns: of numbers, of texts, or of lists of numbers.

    Raises:
        ValueError: its pages are none that ours could be, or cannot be followed.
    """
    taken, pages_left = 0, _MAX_PAGES
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        if column.path.partition(".")[0] not in columns:
            continue
        text = column.physical_type == "BYTE_ARRAY"
        for group in range(metadata.num_row_groups):
            part = metadata.row_group(group).column(index)
            start, dictionary = part.data_page_offset, part.dictionary_page_offset
            if dictionary is not None and 0 < dictionary < start:
                start = dictionary
            pages = []
            for page in _pages(data=data, at=start, values=part.num_values):
                if not pages_left:
                    raise ValueError(f"it has more than {_MAX_PAGES} pages")
                pages_left -= 1
                pages.append(page)
            taken += _text_bytes(pages) if text else _number_bytes(pages, listed=column.max_repetition_level > 0)
    return taken


def list_bytes(*, values: int) -> int:
    """Return how many bytes Arrow takes for so many numbers of one list: twice as many whenever they are too few."""
    return _LISTED_BYTES * 2 ** (values - 1).bit_length() if values > 0 else 0


def _text_bytes(pages: list[_Page]) -> int:
    # Arrow keeps a dictionary of all texts that have come.
    return _TEXT_COPIES * sum(page.size for page in pages) + _TEXT_BYTES * sum(
        page.values for page in pages if page.plain
    )


def _number_bytes(pages: list[_Page], *, listed: bool) -> int:
    dictionaries = sum(page.size + _NUMBER_BYTES * page.values for page in pages if page.dictionary)
    data = [page for page in pages if not page.dictionary]
    grown = list_bytes(values=sum(page.values for page in data)) if listed else 0
    held = dictionaries + max((page.size for page in data), default=0) + grown
    return max(held, sum(page.size for page in pages))


def _pages(*, data: memoryview, at: int, values: int) -> Iterator[_Page]:
    """Yield the pages of a column, as Arrow goes through them: until there are as many values as the footer says."""
    seen = 0
    while seen < values:
        begin = at
        try:
            header, at = _fields(data, at)
            kind, size, packed = header[1], header[2], header[3]
            field, encoding = _KINDS[kind]
            count, encoded = header[field][1], header[field][encoding]
            readable = encoded in _ENCODINGS and all(0 <= number < 2**31 for number in (size, packed, count))
        except (LookupError, TypeError):
            raise ValueError("a page's header is damaged, or of a kind that is not read") from None
        if not readable or at - begin > _MAX_HEADER_BYTES:
            raise ValueError("a page's header is too long, or has an encoding or a number that is not read")
        dictionary = kind == _DICTIONARY
        yield _Page(dictionary=dictionary, plain=dictionary or encoded == _PLAIN, size=size, values=count)
        at += packed
        seen += 0 if dictionary else count


def _fields(data: memoryview, at: int, depth: int = 3) -> tuple[dict[int, Any], int]:
    """Return the numbers of a struct by the ids of their fields, those of structs in it too, and where it ends.

    Ids only grow here, as they do in what anybody writes: of a field that comes twice Arrow could take the other one,
    and its ids start again after 32,767. A struct has one other at most, so that a header takes hardly any time.
    """
    fields: dict[int, Any] = {}
    field = 0
    while True:
        head, at = data[at], at + 1
        kind, step = head & 15, head >> 4
        if kind == 0:
            return fields, at
        if step == 0:
            raise ValueError("the fields of a page's header are not in their order")
        field += step
        if field > _MAX_FIELDS:
            raise ValueError(f"a page's header has a field {field}")
        if kind in (4, 5, 6):  # a number
            number, at = _varint(data, at)
            fields[field] = number >> 1 ^ -(number & 1)
        elif kind == 8:  # bytes
            length, at = _varint(data, at)
            at += length
        elif kind == 12 and depth:  # a struct
            fields[field], at = _fields(data, at, depth - 1)
            depth = 0
        elif kind not in (1, 2):  # true, false
            raise ValueError(f"a page's header has a field of type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
    raise ValueError("a number in a page's header has no end")
