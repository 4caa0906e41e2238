"""The inner loops of reading Criteo logs, compiled by numba: parsing, hashing, logarithms.

Importing this module imports numba (a third of a second); the first calls compile (a second in
all). See `tiered_emb.compiled`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tiered_emb.compiled import compiled
from tiered_emb.data.criteo_format import (
    HEX_DIGITS_MAX,
    INTEGER_DIGITS_MAX,
    NARROW_HEX_DIGITS,
    NARROW_INTEGER_DIGITS,
)
from tiered_emb.data.hashing import MISSING_KEY, mix64

_TAB, _NEWLINE, _RETURN, _MINUS, _ZERO, _ONE = (np.uint8(ord(c)) for c in "\t\n\r-01")
_NOT_HEX = np.uint8(255)
_TEN = np.uint8(10)
_BAD = -1


def _hex_values() -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = np.full(256, _NOT_HEX, dtype=np.uint8)
    for digit in b"0123456789abcdefABCDEF":
        values[digit] = int(chr(digit), 16)
    return values


_HEX = _hex_values()


def _whole_lines(text: Any) -> tuple[int, int]:
    """How many lines end in the text, and how many bytes they have."""
    length = len(text)
    while length > 0 and text[length - 1] != _NEWLINE:
        length -= 1
    lines = 0
    for at in range(length):
        lines += text[at] == _NEWLINE
    return lines, length


def _parse_integers(text: Any, at: int, row: int, values: Any, valid: Any) -> tuple[int, bool]:
    """The 13 integers and the tab after each: where they end, or -1; and whether one is wide."""
    wide = False
    for column in range(len(values)):
        negative = text[at] == _MINUS
        if negative:
            at += 1
        first = at
        value = np.int64(0)
        digit = np.uint8(text[at] - _ZERO)
        while digit < _TEN:
            value = value * 10 + digit
            at += 1
            digit = np.uint8(text[at] - _ZERO)
        digits = at - first
        if text[at] != _TAB or digits > INTEGER_DIGITS_MAX or (negative and digits == 0):
            return _BAD, wide
        wide |= digits > NARROW_INTEGER_DIGITS
        values[column, row] = -value if negative else value
        valid[column, row] = digits > 0
        at += 1
    return at, wide


def _parse_categories(text: Any, at: int, row: int, values: Any, valid: Any) -> tuple[int, bool]:
    """The 26 categories: where the newline after them is, or -1; and whether one is wide."""
    wide = False
    for column in range(len(values)):
        first = at
        value = np.uint64(0)
        digit = _HEX[text[at]]
        while digit != _NOT_HEX:
            value = (value << np.uint64(4)) | np.uint64(digit)
            at += 1
            digit = _HEX[text[at]]
        digits = at - first
        last = column == len(values) - 1
        if last and text[at] == _RETURN:
            at += 1
        if text[at] != (_NEWLINE if last else _TAB) or digits > HEX_DIGITS_MAX:
            return _BAD, wide
        wide |= digits > NARROW_HEX_DIGITS
        values[column, row] = value
        valid[column, row] = digits > 0
        if not last:
            at += 1
    return at, wide


_mix64 = compiled(mix64)
_integers = compiled(_parse_integers)
_categories = compiled(_parse_categories)


def _parse_lines(
    text: Any,
    labels: Any,
    integers: Any,
    integers_valid: Any,
    categories: Any,
    categories_valid: Any,
) -> tuple[int, int, bool]:
    """Parses whole lines into columns, leaving out malformed ones.

    Args:
        text: uint8; its last byte is a newline, so no loop over digits runs past the end.
        labels: int8, like all others with room for every line.
        integers: int32 or int64 [13, lines], and `integers_valid` of the same shape.
        categories: uint32 or uint64 [26, lines], and `categories_valid`.

    Returns:
        How many rows were filled; the number of the first malformed line, or -1; whether a value
        of a row may need more than 32 bits.
    """
    at, line, row, first_bad, wide = 0, 0, 0, _BAD, False
    while at < len(text):
        end = _BAD
        if (text[at] == _ZERO or text[at] == _ONE) and text[at + 1] == _TAB:
            end, wide1 = _integers(text, at + 2, row, integers, integers_valid)
            if end != _BAD:
                end, wide2 = _categories(text, end, row, categories, categories_valid)
        if end != _BAD:
            labels[row] = text[at] - _ZERO
            row += 1
            wide |= wide1 | wide2
            at = end
        else:
            if first_bad == _BAD:
                first_bad = line
            while text[at] != _NEWLINE:
                at += 1
        line += 1
        at += 1
    return row, first_bad, wide


def _hash_column(values: Any, valid: Any, salt: Any, rows: Any, ids: Any) -> None:
    """Fills `ids` as `hashing.hashed_rows` would; `salt` is the key of the table's name."""
    for row in range(len(values)):
        key = _mix64(np.uint64(values[row])) if valid[row] else MISSING_KEY
        ids[row] = _mix64(key ^ salt) % rows


def _log_column(values: Any, valid: Any, logs: Any) -> None:
    """Fills `logs`, float32, with log(1 + max(x, 0)), 0 where missing."""
    for row in range(len(values)):
        value = values[row]
        logs[row] = math.log1p(value) if valid[row] and value > 0 else 0.0


whole_lines = compiled(_whole_lines)
parse_lines = compiled(_parse_lines)
hash_column = compiled(_hash_column)
log_column = compiled(_log_column)
