"""`tiered-emb inspect`: what a store or a checkpoint holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tiered_emb.cli.report import bytes_text, table_text
from tiered_emb.data.errors import DataError
from tiered_emb.engine import TableEngine
from tiered_emb.stores import open_store, stores_of

SUMMARY = "show the tables, rows, segments and space of a store or a checkpoint"

_OPTIMIZERS = ("none", "sgd", "adagrad", "rowwise-adagrad", "adam")
_SHARES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb inspect PATH [--json]"
    parser.epilog = (
        "PATH: the directory of te.SSD(...), or what was given to te.save. It is only read.\n\n"
        "example: tiered-emb inspect /nvme/ads"
    )
    parser.add_argument("path", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the report of every store at the path."""
    reports = []
    try:
        for path in stores_of(args.path):
            engine = open_store(path)
            try:
                reports.append(_report(path, engine))
            finally:
                engine.close()
    except ValueError as error:
        raise DataError(str(error)) from None
    print(json.dumps(reports, indent=2) if args.json else "\n\n".join(map(_text, reports)))
    return 0


def _report(path: Path, engine: TableEngine) -> dict[str, Any]:
    stats = engine.stats()
    segments = engine.segments()
    used = stats.ssd_used_bytes / max(len(segments), 1)
    fractions = [live / used for _, _, live in segments]
    histogram = [0] * _SHARES
    for fraction in fractions:
        histogram[min(int(fraction * _SHARES), _SHARES - 1)] += 1
    tables = []
    for number, spec in enumerate(engine.tables):
        tables.append(
            {
                "name": spec.name,
                "num_embeddings": spec.num_embeddings,
                "embedding_dim": spec.embedding_dim,
                "dtype": str(spec.dtype).removeprefix("torch."),
                "row_bytes": spec.row_bytes(engine.optimizer_kind),
                "rows_stored": sum(len(ids) for ids in engine.known_rows(number)),
                "updates": engine.step(number),
            }
        )
    return {
        "path": str(path),
        "optimizer": _OPTIMIZERS[engine.optimizer_kind],
        "seed": engine.metadata["seed"],
        "tables": tables,
        "io_engine": stats.ssd_io_engine,
        "segments": len(segments),
        "used_bytes": stats.ssd_used_bytes,
        "live_bytes": stats.ssd_live_bytes,
        "space_amplification": stats.space_amplification,
        "segments_by_live_fraction": histogram,
    }


def _text(report: dict[str, Any]) -> str:
    header = ("table", "rows", "stored", "dim", "dtype", "bytes a row", "updates")
    rows = [
        (
            t["name"],
            f"{t['num_embeddings']:,}",
            f"{t['rows_stored']:,}",
            str(t["embedding_dim"]),
            t["dtype"],
            str(t["row_bytes"]),
            f"{t['updates']:,}",
        )
        for t in report["tables"]
    ]
    shares = ", ".join(
        f"{i * 100 // _SHARES}%: {count}"
        for i, count in enumerate(report["segments_by_live_fraction"])
        if count
    )
    space = (
        f"{report['segments']} segments, {bytes_text(report['used_bytes'])}, of them live "
        f"{bytes_text(report['live_bytes'])} "
        f"(space amplification {report['space_amplification']:.2f})"
    )
    return "\n".join(
        [
            f"{report['path']}: optimizer {report['optimizer']}, seed {report['seed']}",
            table_text(header, rows),
            space,
            f"segments by live fraction, from: {shares or 'none'}",
            f"read by the {report['io_engine']} engine",
        ]
    )
