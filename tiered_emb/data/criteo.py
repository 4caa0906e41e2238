"""Criteo click logs (see `criteo_format`) as a source of columns, and as blocks for threads.

The file may be gzipped (told by its first bytes, not its name). A malformed line is an error that
names file and line, or is counted and left out with ``skip_bad_lines``.

A block of whole lines is parsed in one pass by compiled code (`criteo_kernels`): 2.5 M lines/s a
core. Only a line that it refuses is looked at again, to say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiered_emb.data.criteo_format import CATEGORIES, COLUMNS, INTEGERS, explain_line
from tiered_emb.data.errors import DataError
from tiered_emb.data.frame import Column, ColumnType, Frame, Kind
from tiered_emb.data.pipeline import in_order

_BLOCK_BYTES = 8 << 20
_LINE_BYTES_MAX = 16 << 20
_GZIP_MAGIC = b"\x1f\x8b"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Block:
    """A run of whole lines of a file.

    Args:
        text: uint8: the lines, each with its newline.
        lines: how many.
        first_line: number of the first, from 1.
    """

    text: Bytes
    lines: int
    first_line: int


@dataclass(frozen=True)
class Parsed:
    """The samples of a block.

    Args:
        frame: every column; int32 and uint32 values where all fit, else int64 and uint64.
        bad_lines: lines left out.
        missing: empty fields of the samples.
        wide: whether values have 64 bits.
    """

    frame: Frame
    bad_lines: int
    missing: int
    wide: bool


class CriteoSource:
    """A Criteo TSV file as a `Source` with columns label, I1..I13, C1..C26.

    After a pass, ``bad_lines`` says how many lines that pass left out.
    """

    cheap_to_rescan = False

    def __init__(self, path: Path, skip_bad_lines: bool = False) -> None:
        self.name = str(path)
        self.bad_lines = 0
        self._path = path
        self._skip = skip_bad_lines

    def types(self) -> Mapping[str, ColumnType]:
        """Every column and its type."""
        return {name: ColumnType(Kind.INTEGER) for name in COLUMNS}

    def chunks(self, columns: Sequence[str]) -> Iterator[Frame]:
        """The samples in file order, some thousands at a time."""
        self.bad_lines = 0
        for parsed in in_order(self.blocks(), self.parse, workers=1):
            self.bad_lines += parsed.bad_lines
            yield {name: parsed.frame[name] for name in columns}

    def blocks(self, progress: Callable[[int], object] | None = None) -> Iterator[Block]:
        """The file in blocks of lines.

        Args:
            progress: is told how many bytes of the file, as it lies on the disk, were read since it
                was last told.
        """
        line = 1
        done_bytes = 0
        try:
            with self._path.open("rb") as raw, _unzipped(raw) as file:
                for text, lines in _runs_of_lines(file):
                    yield Block(text, lines, line)
                    line += lines
                    if progress is not None:
                        progress(raw.tell() - done_bytes)
                        done_bytes = raw.tell()
        except OSError as error:
            raise DataError(f"{self.name}: cannot read near line {line}: {error}") from error

    def parse(self, block: Block, wide: bool = False) -> Parsed:
        """The samples of a block; 64-bit values if asked for or needed. For any thread."""
        # Numba is slow to import, and most users of this module's names parse nothing.
        from tiered_emb.data.criteo_kernels import parse_lines

        bits = 64 if wide else 32
        labels = np.empty(block.lines, dtype=np.int8)
        integers = np.empty((len(INTEGERS), block.lines), dtype=f"int{bits}")
        categories = np.empty((len(CATEGORIES), block.lines), dtype=f"uint{bits}")
        valid = np.empty((len(COLUMNS) - 1, block.lines), dtype=np.bool_)
        integers_valid, categories_valid = valid[: len(INTEGERS)], valid[len(INTEGERS) :]
        rows, first_bad, needs_wide = parse_lines(
            block.text,
            labels,
            integers,
            integers_valid,
            categories,
            categories_valid,
        )
        if first_bad >= 0 and not self._skip:
            line = block.text.tobytes().split(b"\n", first_bad + 1)[first_bad]
            where = f"{self.name}:{block.first_line + first_bad}"
            raise DataError(f"{where}: {explain_line(line)}")
        if needs_wide and not wide:
            return self.parse(block, wide=True)
        frame = {"label": Column(Kind.INTEGER, labels[:rows])}
        values = [*integers, *categories]
        for name, column, present in zip(COLUMNS[1:], values, valid, strict=True):
            frame[name] = Column(Kind.INTEGER, column[:rows], present[:rows])
        missing = valid[:, :rows].size - int(np.count_nonzero(valid[:, :rows]))
        return Parsed(frame, block.lines - rows, missing, wide)


def _unzipped(raw: IO[bytes]) -> IO[bytes]:
    zipped = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    raw.seek(0)
    # A quarter faster than the gzip module; checks the same sums.
    return cast(IO[bytes], pa.CompressedInputStream(raw, "gzip")) if zipped else raw


def _runs_of_lines(file: IO[bytes]) -> Iterator[tuple[Bytes, int]]:
    """Runs of whole lines and their number; a last line without a newline gets it."""
    from tiered_emb.data.criteo_kernels import whole_lines

    rest = np.empty(0, dtype=np.uint8)
    while True:
        text = np.empty(len(rest) + _BLOCK_BYTES, dtype=np.uint8)
        text[: len(rest)] = rest
        read_bytes = file.readinto(text[len(rest) :].data)  # type: ignore[attr-defined]
        if read_bytes == 0:
            break
        text = text[: len(rest) + read_bytes]
        lines, end = whole_lines(text)
        if lines:
            yield text[:end], lines
        rest = text[end:]
        if len(rest) > _LINE_BYTES_MAX:
            raise OSError(f"a line of more than {_LINE_BYTES_MAX} bytes")
    if len(rest):
        yield np.append(rest, np.uint8(ord("\n"))), 1
