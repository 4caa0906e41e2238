"""Which columns of a source become which inputs of a model.

All classes are frozen and hold plain values: a spec can be printed, compared and written to JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import ColumnType, Kind

HASH_ROWS_DEFAULT = 1_000_000


@dataclass(frozen=True)
class Cross:
    """A hashed cross: one id for every combination of values of its columns.

    At most one of the columns may be a list column; the cross is then a bag with one id an element.
    """

    columns: tuple[str, ...]
    rows: int | None = None

    @property
    def name(self) -> str:
        """The name of its table."""
        return "*".join(self.columns)


@dataclass(frozen=True)
class Bag:
    """For each row, the ids that the *other* rows of its group have for a column or cross.

    Rows with the same id as the row itself are left out: that id may be what the label is about,
    and the row's own copy of it belongs in a `Cross`. At most `length_max` ids are taken, those of
    the rows nearest in the group's order.
    """

    columns: tuple[str, ...]
    group: str
    rows: int | None = None
    length_max: int = 32

    @property
    def name(self) -> str:
        """The name of its table."""
        return "*".join(self.columns) + "@" + self.group


@dataclass(frozen=True)
class Spec:
    """The columns of a model and what each is used as.

    Args:
        label: column of the 0/1 label.
        dense: columns of numbers; missing values become the mean.
        categorical: columns of one id a row.
        multihot: list columns: a bag of ids a row.
        crosses: hashed crosses.
        bags: bags over the rows of a group.
        hash_rows: rows of a table whose column has more distinct values, or an unknown number.
        time: column that orders the rows; None: they are in order already.
        unlabelled: label value of rows that serve as context of bags but not as samples.
        log_dense: whether dense values are counts, to be replaced by log(1 + max(x, 0)).
    """

    label: str
    dense: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    multihot: tuple[str, ...] = ()
    crosses: tuple[Cross, ...] = ()
    bags: tuple[Bag, ...] = ()
    hash_rows: int = HASH_ROWS_DEFAULT
    time: str | None = None
    unlabelled: float | None = None
    log_dense: bool = False

    def columns(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        names = [self.label, *self.dense, *self.categorical, *self.multihot]
        for cross in self.crosses:
            names += cross.columns
        for bag in self.bags:
            names += [*bag.columns, bag.group]
        if self.time is not None:
            names.append(self.time)
        return tuple(dict.fromkeys(names))

    def hashed(self) -> tuple[Cross | Bag, ...]:
        """What gets a table of its own by hashing, in the order of the tables."""
        return (*self.crosses, *self.bags)

    def check(self, source: str, types: Mapping[str, ColumnType]) -> None:
        """Raises `DataError` if a column is absent or cannot be used as asked."""
        for name in self.columns():
            if name not in types:
                raise DataError(f"{source}: no column {name!r}; it has {_listed(types)}")
        numeric = [("label", self.label), *(("dense", name) for name in self.dense)]
        if self.time is not None:
            numeric.append(("time", self.time))
        for use, name in numeric:
            if types[name].is_list or types[name].kind is Kind.TEXT:
                raise DataError(f"{source}: {use} column {name!r} must be a column of numbers")
        scalars = [*self.categorical, *(bag.group for bag in self.bags)]
        scalars += [name for bag in self.bags for name in bag.columns]
        for name in scalars:
            if types[name].is_list:
                raise DataError(f"{source}: list column {name!r} can only be multi-hot or crossed")
        for name in self.multihot:
            if not types[name].is_list:
                raise DataError(f"{source}: multi-hot column {name!r} must be a list column")
        for cross in self.crosses:
            if sum(types[name].is_list for name in cross.columns) > 1:
                raise DataError(f"{source}: cross {cross.name!r} has more than one list column")
        if not (self.categorical or self.multihot or self.crosses or self.bags):
            raise DataError(f"{source}: no categorical column, so there is nothing to embed")


def spec_by_type(
    source: str,
    types: Mapping[str, ColumnType],
    label: str | None,
    time: str | None,
    leave_out: Sequence[str] = (),
) -> Spec:
    """The spec of an undescribed source: floats are dense, integers and text categorical."""
    name = label if label is not None else "label"
    if name not in types:
        hint = "" if label is not None else " (say which column it is with --label)"
        raise DataError(f"{source}: no column {name!r}{hint}; it has {_listed(types)}")
    used = {n: t for n, t in types.items() if n not in {name, time, *leave_out}}
    return Spec(
        label=name,
        dense=tuple(n for n, t in used.items() if t.kind is Kind.FLOAT and not t.is_list),
        categorical=tuple(n for n, t in used.items() if t.kind is not Kind.FLOAT and not t.is_list),
        multihot=tuple(n for n, t in used.items() if t.kind is not Kind.FLOAT and t.is_list),
        time=time,
    )


def parse_cross(text: str) -> Cross:
    """``a,b`` or ``a,b:rows``."""
    columns, rows = _columns_and_rows(text, text)
    if len(columns) < 2:
        raise DataError(f"--cross {text}: expected at least two columns, as in a,b or a,b:100000")
    return Cross(columns, rows)


def parse_bag(text: str) -> Bag:
    """``col:group``, ``a,b:group`` or ``a,b:group:rows``."""
    head, colon, rest = text.partition(":")
    group, _, rows = rest.partition(":")
    if not colon or not group:
        raise DataError(f"--bag {text}: expected columns:group, as in customer,sku:invoice")
    columns, count = _columns_and_rows(f"{head}:{rows}" if rows else head, text)
    return Bag(columns, group, count)


def with_hash_rows(spec: Spec, hash_rows: int) -> Spec:
    """The same spec with another number of rows for hashed tables."""
    if hash_rows < 1:
        raise DataError(f"--hash-rows {hash_rows}: must be at least 1")
    return replace(spec, hash_rows=hash_rows)


def _columns_and_rows(text: str, shown: str) -> tuple[tuple[str, ...], int | None]:
    names, _, rows = text.partition(":")
    columns = tuple(name.strip() for name in names.split(",") if name.strip())
    if not columns:
        raise DataError(f"{shown!r} names no column")
    if not rows:
        return columns, None
    if not rows.isdigit() or int(rows) < 1:
        raise DataError(f"{shown!r}: {rows!r} is not a number of rows")
    return columns, int(rows)


def _listed(types: Mapping[str, ColumnType]) -> str:
    names = list(types)
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
