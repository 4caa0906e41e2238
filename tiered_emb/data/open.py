"""From the DATA argument of the command line to a source and its default spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiered_emb.data.criteo import CriteoSource
from tiered_emb.data.criteo_format import CATEGORIES, INTEGERS, has_criteo_columns
from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Source
from tiered_emb.data.named import NAMED
from tiered_emb.data.parquet import ParquetSource, is_parquet
from tiered_emb.data.spec import Spec, spec_by_type

CRITEO_SPEC = Spec(label="label", dense=INTEGERS, categorical=CATEGORIES, log_dense=True)


def open_data(
    data: str,
    label: str | None = None,
    time: str | None = None,
    leave_out: Sequence[str] = (),
    skip_bad_lines: bool = False,
) -> tuple[Source, Spec]:
    """Opens a named data set, a Parquet file or a Criteo TSV file (gzipped or not).

    A Parquet file with the columns of a Criteo log, as `tiered-emb convert-data` makes it, is used
    as that log would be: the same spec, and the same hashed ids; unless another label, a time or
    columns to leave out are named.

    Args:
        label, time, leave_out: for a Parquet file, whose other columns are used by their types.

    Raises:
        DataError: with one line that says what is wrong.
    """
    if data in NAMED:
        return NAMED[data]()
    path = Path(data)
    if path.is_dir():
        raise DataError(f"{data}: is a directory; expected a file")
    try:
        parquet = is_parquet(path)
    except FileNotFoundError as error:
        names = ", ".join(NAMED)
        raise DataError(f"{data}: no such file, and not a named data set ({names})") from error
    except OSError as error:
        raise DataError(f"{data}: cannot read: {error.strerror}") from error
    if not parquet:
        return CriteoSource(path, skip_bad_lines), CRITEO_SPEC
    source = ParquetSource(path)
    as_criteo = label in (None, "label") and time is None and not leave_out
    if as_criteo and has_criteo_columns(source.types()):
        return ParquetSource(path, cheap_to_rescan=False), CRITEO_SPEC
    return source, spec_by_type(data, source.types(), label, time, leave_out)
