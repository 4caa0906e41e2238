"""From the DATA argument of the command line to a source and its default spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiered_emb.data.criteo import CATEGORIES, INTEGERS, CriteoSource
from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Source
from tiered_emb.data.named import NAMED
from tiered_emb.data.parquet import ParquetSource
from tiered_emb.data.spec import Spec, spec_by_type

_PARQUET_MAGIC = b"PAR1"
CRITEO_SPEC = Spec(label="label", dense=INTEGERS, categorical=CATEGORIES, log_dense=True)


def open_data(
    data: str,
    label: str | None = None,
    time: str | None = None,
    leave_out: Sequence[str] = (),
    skip_bad_lines: bool = False,
) -> tuple[Source, Spec]:
    """Opens a named data set, a Parquet file or a Criteo TSV file (gzipped or not).

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
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        names = ", ".join(NAMED)
        raise DataError(f"{data}: no such file, and not a named data set ({names})") from error
    except OSError as error:
        raise DataError(f"{data}: cannot read: {error.strerror}") from error
    if magic == _PARQUET_MAGIC or path.suffix == ".parquet":
        source = ParquetSource(path)
        return source, spec_by_type(data, source.types(), label, time, leave_out)
    return CriteoSource(path, skip_bad_lines), CRITEO_SPEC
