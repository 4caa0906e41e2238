"""What a line of a Criteo click log is, and what is wrong with one that is none.

A line is a label (0 or 1), 13 integers and 26 hexadecimal categories with tabs between them. Any
field but the label may be empty. An integer has up to 18 digits and may have a minus sign; a
category has up to 16 digits. A carriage return before the newline is no part of the line.

Source: the Criteo Kaggle Display Advertising Challenge and Terabyte logs, whose integers fit in 32
bits and whose categories have 8 digits.
"""

from __future__ import annotations

from collections.abc import Mapping

from tiered_emb.data.frame import ColumnType, Kind

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORIES)

INTEGER_DIGITS_MAX = 18
HEX_DIGITS_MAX = 16
NARROW_INTEGER_DIGITS = 9
"""So many digits always fit in 32 bits."""
NARROW_HEX_DIGITS = 8

_HEX_DIGITS = b"0123456789abcdefABCDEF"


def has_criteo_columns(types: Mapping[str, ColumnType]) -> bool:
    """Whether these are the columns of a log, all of them integers."""
    integer = ColumnType(Kind.INTEGER)
    return set(types) == set(COLUMNS) and all(t == integer for t in types.values())


def explain_line(line: bytes) -> str:
    """What is wrong with a line, given without its newline, that the parser refused."""
    fields = line.removesuffix(b"\r").split(b"\t")
    if len(fields) != len(COLUMNS):
        return f"{len(fields)} fields; expected 40 (label, 13 integers, 26 categories)"
    if fields[0] not in (b"0", b"1"):
        return f"label is {_show(fields[0])}; expected 0 or 1"
    for name, field in zip(INTEGERS, fields[1:14], strict=True):
        digits = field.removeprefix(b"-")
        if field and (not digits.isdigit() or len(digits) > INTEGER_DIGITS_MAX):
            return f"{name} is {_show(field)}; expected an integer or nothing"
    for name, field in zip(CATEGORIES, fields[14:], strict=True):
        if len(field) > HEX_DIGITS_MAX or field.strip(_HEX_DIGITS):
            return f"{name} is {_show(field)}; expected hexadecimal digits or nothing"
    return "malformed line"


def _show(field: bytes) -> str:
    text = field.decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "...")
