"""A report as one HTML file: no script, nothing from elsewhere, fit for a phone.

Every text that comes from a file is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from tiered_emb.bench.report.parts import Chart, Section, Table
from tiered_emb.bench.report.steps import FACTORS

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --back: #fff; --soft: #666; --line: #ddd;
  --warn: #fff4e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --back: #16181b; --soft: #a0a0a0; --line: #3a3d42; --warn: #3a2c10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 50rem; padding: 1rem; color: var(--ink); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1.05rem; line-height: 1.35; margin: 1.8rem 0 .5rem; }
a { color: inherit; }
li { margin: .35rem 0; }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 40rem; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9rem; margin: .4rem 0; }
.table { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 400; }
summary { cursor: pointer; font-size: .9rem; padding: .3rem 0; }
.warning { background: var(--warn); border-left: 4px solid #E69F00; padding: .5rem .8rem;
  margin: 1rem 0; }
.source { margin: .3rem 0; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: .2rem 0; }
.warning h3 { margin: 0; }
.warning ul { margin: 0; padding-left: 1.2rem; }
@media (max-width: 32rem) { figure img { width: calc(100% + 1.6rem); max-width: none;
  margin: 0 -.8rem; border-width: 1px 0; border-radius: 0; } }
@media print { figure, tr { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_OPEN_ROWS_MAX = 12  # a longer table starts folded

_TERMS = {
    "T_min, the bound": "The least time that a step could take on this machine: what its busiest "
    "resource needs at the limit that was measured of it, with the fewest reads from the drive "
    "that any cache of this size could have (Belady's optimum). Without a device, the layers and "
    "the rows in dram share the processor, so their times add up; the drive works beside it.",
    "eta": "T_min divided by the measured time of a step: 1 is as fast as the machine allows. It "
    "is the product of policy, amplification, bandwidth and overlap.",
    **{name: f"A factor of eta; below 1, time goes to {what}." for name, what in FACTORS.items()},
    "quartiles": "A quarter of the repetitions lies below the first, a quarter above the second. "
    "Where they are more than 10% of the median apart, the figure is marked as noisy.",
    "in line": "Each step fetches the rows that it lacks, and waits for them; otherwise they are "
    "fetched ahead, while earlier steps compute.",
    "hbm, dram, ssd": "Tiers of an embedding table: memory of a device, main memory, the drive.",
    "closes": "The accounting closes where the parts of a step add up to its time, within 5%.",
}


def html(
    sections: Sequence[Section], images: Mapping[str, bytes], smoke: bool, machines: Sequence[str]
) -> str:
    """The page.

    Args:
        images: PNG by the name of its chart.
        smoke: whether a figure comes from a run too short to be trusted.
        machines: that figures come from.
    """
    warnings = [text for section in sections for text in section.warnings]
    if smoke:
        warnings.insert(0, "Smoke run: sizes and times are too small for figures to say anything.")
    if len(machines) > 1:
        warnings.insert(
            0, f"The figures come from {len(machines)} machines: {'; '.join(machines)}."
        )
    head = [f'<p class="source">{escape("; ".join(machines))}</p>', '<dl class="summary">']
    for i, section in enumerate(sections):
        head.append(f'<dt><a href="#s{i}">{escape(section.title)}</a></dt>')
        head += [f"<dd>{escape(text)}</dd>" for text in section.summary]
    head.append('<dt><a href="#terms">Terms</a></dt>\n</dl>')
    if warnings:
        items = "\n".join(f"<li>{escape(text)}</li>" for text in warnings)
        head.append(f'<div class="warning"><h3>What not to trust</h3>\n<ul>\n{items}\n</ul></div>')
    else:
        head.append("<p>No figure's quartiles are more than 10% of its median apart.</p>")
    body = [_section(i, section, images) for i, section in enumerate(sections)]
    terms = "\n".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _TERMS.items()
    )
    return "\n".join((
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>tiered_emb: benchmark report</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        "<header><h1>tiered_emb: benchmark report</h1></header>\n<main>",
        '<section><h2 id="summary">Summary</h2>', *head, "</section>",
        *body,
        f'<section><h2 id="terms">Terms</h2>\n<dl>\n{terms}\n</dl></section>',
        "</main>\n</body>\n</html>\n",
    ))  # fmt: skip


def _section(i: int, section: Section, images: Mapping[str, bytes]) -> str:
    parts = [f'<section><h2 id="s{i}">{escape(section.title)}</h2>']
    parts += [_chart(chart, images[chart.name]) for chart in section.charts]
    for heading, table in section.tables:
        parts.append(f"<h3>{escape(heading)}</h3>\n{_table(table)}")
    parts += [f'<p class="source">{escape(line)}</p>' for line in section.sources]
    return "\n".join([*parts, "</section>"])


def _chart(chart: Chart, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    alt = escape(f"Chart: {chart.title}. Its figures are in the table below.", quote=True)
    state = " open" if len(chart.table.rows) <= _OPEN_ROWS_MAX else ""
    return "\n".join((
        f"<h3>{escape(chart.title)}</h3>",
        *([f'<p class="source">{escape(chart.subject)}</p>'] if chart.subject else []),
        f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">',
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>",
        f"<details{state}><summary>Figures</summary>{_table(chart.table)}</details>",
    ))  # fmt: skip


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header)
    lines = []
    for first, *others in table.rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
