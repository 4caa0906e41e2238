"""What a report is made of: sections of charts and tables, and the figures in them.

All are plain values. Texts are as they came from the files; `page` escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOISE_MAX = 0.10  # of the median, between the quartiles; DESIGN.md calls more too noisy

Report = Mapping[str, Any]  # one benchmark's JSON, whose shape has been checked


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    p25: float
    p50: float
    p75: float

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Spread:
        """From JSON, which may say `median` for `p50`."""
        return cls(data["p25"], data["p50"] if "p50" in data else data["median"], data["p75"])

    def times(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(self.p25 * factor, self.p50 * factor, self.p75 * factor)

    def under(self, amount: float) -> Spread:
        """`amount` divided by each: times turn into rates."""
        low, high = max(self.p25, self.p50 / 100), max(self.p75, self.p50 / 100)
        return Spread(amount / high, amount / self.p50, amount / low)

    @property
    def share(self) -> float:
        """Of the median, between the quartiles."""
        return (self.p75 - self.p25) / self.p50

    @property
    def is_noisy(self) -> bool:
        """Whether the machine was too noisy for this figure."""
        return self.share > NOISE_MAX

    @property
    def cells(self) -> tuple[str, str]:
        """The median, and the quartiles with what is to be said of them."""
        noisy = f" ({self.share:.0%}: noisy)" if self.is_noisy else ""
        return number(self.p50), f"{number(self.p25)} to {number(self.p75)}{noisy}"


@dataclass(frozen=True)
class Table:
    """The first column names what the row is of; the others are figures, or text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart, and the figures it shows.

    Args:
        name: of its PNG, without the suffix; letters, digits and dashes.
        title: what it shows.
        caption: how to read it, in a sentence or two.
        draw: draws it on empty axes.
        table: its figures.
        subject: of what, where the title does not say it.
        height: of the plot, in inches; see `drawing` for the width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Axes], None]
    table: Table
    subject: str = ""
    height: float = 2.9


@dataclass(frozen=True)
class Section:
    """One subject.

    Args:
        title: of its heading.
        summary: sentences for the head of the report.
        warnings: sentences on what not to trust in it.
        charts: with their tables.
        tables: (heading, table) that no chart shows.
        sources: machine, versions, commit, date and command of its figures, in a line each.
    """

    title: str
    summary: Sequence[str]
    warnings: Sequence[str]
    charts: Sequence[Chart]
    sources: Sequence[str]
    tables: Sequence[tuple[str, Table]] = ()


def number(value: float) -> str:
    """Three digits or more: ``12,345``, ``12.3``, ``0.0123``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def short(value: float) -> str:
    """For the ticks of an axis: ``12k``, ``1.5M``, ``0.01``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def place(value: float) -> str:
    """For a tick at a value that was measured: ``8,192``, ``1M``."""
    return f"{value:,.6g}" if abs(value) < 1e5 else short(value)


def bytes_tick(value: float) -> str:
    """Likewise of bytes: ``512 B``, ``4 KiB``."""
    for limit, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g} B"


def percent(share: float) -> str:
    """Of a share: ``10%``, ``0.5%``."""
    return f"{share * 100:.3g}%"


def noise_warning(what: str, spreads: Mapping[str, Spread]) -> list[str]:
    """A sentence that names the figures for which the machine was too noisy, if there are any."""
    noisy = {name: s for name, s in spreads.items() if s.is_noisy}
    if not noisy:
        return []
    named = ", ".join(f"{name} ({s.share:.0%})" for name, s in list(noisy.items())[:8])
    more = f" and {len(noisy) - 8} more" if len(noisy) > 8 else ""
    text = (
        f"{what}: the machine was too noisy for {len(noisy)} of {len(spreads)} figures, whose "
        f"quartiles are more than {NOISE_MAX:.0%} of the median apart: {named}{more}."
    )
    return [text]


def source_line(report: Report) -> str:
    """Machine, versions, commit, date and command of a report."""
    machine, versions = report["machine"], report["versions"]
    parts = [str(machine.get("cpu") or "unknown processor")]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if isinstance(machine.get("memory_bytes"), int):
        parts.append(bytes_tick(machine["memory_bytes"]))
    if machine.get("gpu") or report.get("gpu"):
        parts.append(str(machine.get("gpu") or report.get("gpu")))
    if machine.get("kernel"):
        parts.append(f"kernel {machine['kernel']}")
    commit = str(report.get("commit") or "not known")[:10]
    changes = " with changes" if report.get("commit_changed") else ""
    return "; ".join((
        ", ".join(parts),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"commit {commit}{changes}",
        str(report["date"]),
        str(report["command"]),
    ))  # fmt: skip


def slug(text: str) -> str:
    """As part of a file's name."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:40] or "x"
