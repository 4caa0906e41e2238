"""Criteo click logs: a sample a line: label, 13 integers, 26 hexadecimal categories, tabs between.

The file may be gzipped (told by its first bytes, not its name). Any field but the label may be
empty. A line that is anything else is an error that names file and line, or is counted and left
out with ``skip_bad_lines``.

A block of lines is parsed as one array of bytes (about 0.4 M lines a second a core); only a line
that fails is looked at again, by the slow parser, which says what is wrong with it.

Source of the format: the Criteo Kaggle Display Advertising Challenge and Terabyte logs.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column, ColumnType, Frame, Kind, Mask
from tiered_emb.data.hashing import Ids

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORIES)

_BLOCK_BYTES = 1 << 20
_INTEGER_DIGITS_MAX = 18
_HEX_DIGITS_MAX = 16
_INVALID = np.uint64(255)

Bytes = npt.NDArray[np.uint8]
Digits = npt.NDArray[np.uint64]


def _digit_values(digits: bytes) -> Digits:
    table = np.full(256, _INVALID, dtype=np.uint64)
    for value, digit in enumerate(digits):
        table[digit] = value
        table[ord(chr(digit).upper())] = value
    return table


_DECIMAL = _digit_values(b"0123456789")
_HEX = _digit_values(b"0123456789abcdef")


class CriteoSource:
    """A Criteo TSV file as a `Source` with columns label, I1..I13, C1..C26.

    After a pass, ``bad_lines`` says how many lines that pass left out.
    """

    cheap_to_rescan = False

    def __init__(self, path: Path, skip_bad_lines: bool = False) -> None:
        self.name = str(path)
        self.bad_lines = 0
        self._path = path
        self._skip = skip_bad_lines

    def types(self) -> Mapping[str, ColumnType]:
        """Every column and its type."""
        return {name: ColumnType(Kind.INTEGER) for name in COLUMNS}

    def chunks(self, columns: Sequence[str]) -> Iterator[Frame]:
        """The samples in file order, some thousands at a time."""
        self.bad_lines = 0
        line_number = 1
        try:
            with _open(self._path) as file:
                for block in _blocks_of_lines(file):
                    frame, lines = self._parse(block, line_number, columns)
                    line_number += lines
                    yield frame
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.name}: cannot read near line {line_number}: {error}") from error

    def _parse(self, block: bytes, first_line: int, columns: Sequence[str]) -> tuple[Frame, int]:
        text = np.frombuffer(block, dtype=np.uint8)
        starts, ends, good = _fields(text)
        parsed: dict[str, Column] = {}
        faults = np.zeros(starts.shape[1], dtype=np.bool_)
        for position, name in enumerate(COLUMNS):
            column, fault = _parse_column(text, starts[position], ends[position], position)
            parsed[name] = column
            faults |= fault
        good[np.flatnonzero(good)[faults]] = False
        if not good.all():
            self._reject(block, int(np.flatnonzero(~good)[0]), first_line)
            self.bad_lines += int((~good).sum())
        return {name: _select(parsed[name], ~faults) for name in columns}, len(good)

    def _reject(self, block: bytes, bad: int, first_line: int) -> None:
        if not self._skip:
            line = block.split(b"\n", bad + 1)[bad].removesuffix(b"\r")
            raise DataError(f"{self.name}:{first_line + bad}: {explain_line(line)}")


def explain_line(line: bytes) -> str:
    """What is wrong with a line that the fast parser refused."""
    fields = line.split(b"\t")
    if len(fields) != len(COLUMNS):
        return f"{len(fields)} fields; expected 40 (label, 13 integers, 26 categories)"
    if fields[0] not in (b"0", b"1"):
        return f"label is {_show(fields[0])}; expected 0 or 1"
    for name, field in zip(INTEGERS, fields[1:14], strict=True):
        digits = field.removeprefix(b"-")
        if field and (not digits.isdigit() or len(digits) > _INTEGER_DIGITS_MAX):
            return f"{name} is {_show(field)}; expected an integer or nothing"
    for name, field in zip(CATEGORIES, fields[14:], strict=True):
        if len(field) > _HEX_DIGITS_MAX or _INVALID in _HEX[np.frombuffer(field, np.uint8)]:
            return f"{name} is {_show(field)}; expected hexadecimal digits or nothing"
    return "malformed line"


def _show(field: bytes) -> str:
    text = field.decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def _blocks_of_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Runs of whole lines, each ending in a newline; a last line without one gets it."""
    rest = b""
    while data := file.read(_BLOCK_BYTES):
        data = rest + data
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield data[:cut]
    if rest:
        yield rest + b"\n"


def _fields(text: Bytes) -> tuple[Ids, Ids, Mask]:
    """Start and end of each line's 40 fields, as two [40, lines] arrays, and which lines have 40.

    The arrays leave out the other lines.
    """
    stops = np.flatnonzero((text == ord("\t")) | (text == ord("\n")))
    last = np.flatnonzero(text[stops] == ord("\n"))
    fields = np.diff(last, prepend=-1)
    good = fields == len(COLUMNS)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), stops[:-1] + 1])
    if not good.all():
        kept = np.repeat(good, fields)
        starts, stops = starts[kept], stops[kept]
    starts = np.ascontiguousarray(starts.reshape(-1, len(COLUMNS)).T)
    ends = np.ascontiguousarray(stops.reshape(-1, len(COLUMNS)).T)
    ends[-1] -= (text[np.maximum(ends[-1] - 1, 0)] == ord("\r")) & (ends[-1] > starts[-1])
    return starts, ends, good


def _parse_column(text: Bytes, start: Ids, end: Ids, position: int) -> tuple[Column, Mask]:
    """One column of the block, and which of its fields are malformed."""
    if position > len(INTEGERS):
        values, fault = _parse_digits(text, start, end, _HEX, 16, _HEX_DIGITS_MAX)
        return Column(Kind.INTEGER, values, valid=end > start), fault
    present = end > start
    negative = present & (text[start] == ord("-"))
    values, fault = _parse_digits(text, start + negative, end, _DECIMAL, 10, _INTEGER_DIGITS_MAX)
    fault |= negative & (end - start == 1)
    signed = values.view(np.int64)
    signed[negative] *= -1
    if position == 0:
        fault |= (end - start != 1) | (signed < 0) | (signed > 1)
        return Column(Kind.INTEGER, signed), fault
    return Column(Kind.INTEGER, signed, valid=present), fault


def _parse_digits(
    text: Bytes, start: Ids, end: Ids, digit_of: Digits, base: int, digits_max: int
) -> tuple[npt.NDArray[np.uint64], Mask]:
    length = end - start
    longest = int(length.max(initial=0))
    values = np.zeros(len(start), dtype=np.uint64)
    worst = np.zeros(len(start), dtype=np.uint64)
    everywhere = int(length.min(initial=longest))
    for k in range(min(longest, digits_max)):
        if k < everywhere:
            digit = digit_of[text[start + k]]
            values = values * np.uint64(base) + digit
        else:
            within = k < length
            digit = np.where(within, digit_of[text[np.where(within, start + k, 0)]], np.uint64(0))
            values = np.where(within, values * np.uint64(base) + digit, values)
        np.maximum(worst, digit, out=worst)
    return values, (worst == _INVALID) | (length > digits_max)


def _select(column: Column, rows: Mask) -> Column:
    if rows.all():
        return column
    valid = None if column.valid is None else column.valid[rows]
    return Column(column.kind, column.values[rows], valid)
