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
# Of each struct; the format has none of twenty.
_MAX_FIELDS: Final = 31
_MAGIC: Final = b"PAR1"
# Types of fields.
_STOP: Final = 0
_BOOLEANS: Final = (1, 2)
_BYTE: Final = 3
_INT32: Final = 5
_INT64: Final = 6
_INTEGERS: Final = (4, _INT32, _INT64)
_BINARY: Final = 8
_LIST: Final = 9
_STRUCT: Final = 12
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
    taken, pages_left, groups = 0, _MAX_PAGES, _groups(data=data)
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        if column.path.partition(".")[0] not in columns:
            continue
        text = column.physical_type == "BYTE_ARRAY"
        for parts in groups:
            values, start = parts[index]
            pages = []
            for page in _pages(data=data, at=start, values=values):
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


def _groups(*, data: memoryview) -> list[list[tuple[int, int]]]:
    """Return of each column in each row group the number of its values, and where its pages begin.

    Read here, as asking pyarrow ends the process where something in the footer does not fit its schema.
    """
    try:
        size = int.from_bytes(data[-8:-4], "little")
        footer, _ = _fields(data[-8 - size : -8], 0, depth=6, listed=_MAX_LISTED, integer=_INT64)
        return [[_part(column[3]) for column in group[1]] for group in footer[4]]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("its footer is damaged") from None


def _part(column: dict[int, Any]) -> tuple[int, int]:
    values, start, dictionary = column[5], column[9], column.get(11, 0)
    return values, dictionary if 0 < dictionary < start else start


def _fields(
    data: memoryview, at: int, *, depth: int = 3, listed: int = 0, integer: int = _INT32
) -> tuple[dict[int, Any], int]:
    """Return what is in a struct by the ids of its fields, and where it ends.

    Ids only grow here, as they do in what anybody writes: of a field that comes twice Arrow could take the other one,
    and its ids start again after 32,767. A struct has two others at most, so that a header takes hardly any time.

    Args:
        data: where it is.
        at: where it begins.
        depth: how deep others may be in it.
        listed: how many a list in it may hold.
        integer: the type of those that are wanted; Arrow skips what is of another type than it should be.
    """
    fields: dict[int, Any] = {}
    field, structs = 0, 2
    while True:
        head, at = data[at], at + 1
        kind, step = head & 15, head >> 4
        if kind == _STOP:
            return fields, at
        if step == 0:
            raise ValueError("the fields of a struct are not in their order")
        field += step
        structs -= kind == _STRUCT
        if field > _MAX_FIELDS or structs < 0:
            raise ValueError(f"a struct has a field {field}, or more than two others in it")
        if kind not in _BOOLEANS:  # those have no value besides
            fields[field], at = _value(data, at, kind, depth=depth, listed=listed, integer=integer)


def _value(data: memoryview, at: int, kind: int, *, depth: int, listed: int, integer: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        number, at = _varint(data, at)
        return (number >> 1 ^ -(number & 1)) if kind == integer else None, at
    if kind == _BYTE:
        return None, at + 1
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    if kind == _STRUCT and depth:
        return _fields(data, at, depth=depth - 1, listed=listed, integer=integer)
    if kind == _LIST:
        head, at = data[at], at + 1
        count = head >> 4
        if count == 15:
            count, at = _varint(data, at)
        if count <= listed and head & 15 not in _BOOLEANS:
            values = []
            for _ in range(count):
                value, at = _value(data, at, head & 15, depth=depth, listed=listed, integer=integer)
                values.append(value)
            return values, at
    raise ValueError(f"a struct has a field of type {kind} that is not read")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128 and number < 2**64:  # Arrow takes no more of it
            return number, at
    raise ValueError("a number in a page's header has no end")
