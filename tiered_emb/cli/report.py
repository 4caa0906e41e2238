"""Plain text for people: aligned tables, byte counts, progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """A byte count in the largest unit that keeps it at 1 or more: ``1.5 MiB``."""
    unit = 0
    while abs(count) >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its first column to the left and the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def progress_bar(items: Iterable[_T], total: int | None, caption: str, unit: str) -> Iterable[_T]:
    """Items with a progress bar on stderr, if stderr is a terminal."""
    bar: Iterable[_T] = tqdm(
        items, total=total, desc=caption, unit=unit, file=sys.stderr, leave=False, disable=None
    )
    return bar


@contextmanager
def bytes_progress(total: int, caption: str) -> Iterator[Callable[[int], object]]:
    """A progress bar of bytes, as `progress_bar`; gives the function that advances it."""
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with tqdm(
        total=total, desc=caption, file=sys.stderr, leave=False, disable=None, **options
    ) as bar:
        yield bar.update
