"""The Criteo TSV parser: values, missing values, gzip, and what it says of malformed lines."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_emb.data import DataError
from tiered_emb.data import criteo as criteo_module
from tiered_emb.data.criteo import CriteoSource
from tiered_emb.data.criteo_format import COLUMNS
from tiered_emb.data.frame import Column, Kind

GOOD = ["1", *[str(i - 3) for i in range(13)], *[f"{i * 77777:08x}" for i in range(26)]]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def read_criteo(source: CriteoSource) -> dict[str, Column]:
    frames = list(source.chunks(COLUMNS))
    return {
        name: Column(
            Kind.INTEGER,
            np.concatenate([f[name].values for f in frames]),
            None
            if frames[0][name].valid is None
            else np.concatenate([np.asarray(f[name].valid) for f in frames]),
        )
        for name in COLUMNS
    }


def test_criteo_values_and_missing_values(tmp_path: Path) -> None:
    empty = ["0", *[""] * 39]
    odd = ["0", "-7", "", "123456789012", *["5"] * 10, "DEADBEEF", "", "f", *["0a"] * 23]
    path = write_lines(tmp_path / "day", ["\t".join(line) for line in (GOOD, empty, odd)])
    columns = read_criteo(CriteoSource(path))
    assert columns["label"].values.tolist() == [1, 0, 0]
    assert columns["I1"].values[[0, 2]].tolist() == [-3, -7]
    assert columns["I1"].valid is not None
    assert columns["I1"].valid.tolist() == [True, False, True]
    assert columns["I3"].values[2] == 123456789012
    assert columns["C1"].values[2] == 0xDEADBEEF
    assert columns["C3"].values[2] == 0xF
    assert columns["C26"].values[0] == 25 * 77777
    assert np.isnan(columns["I2"].numbers("I2")[1:]).all()


@pytest.mark.parametrize("block_bytes", [64, 300, 1 << 20])
def test_criteo_gz_and_plain_agree_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(50):
        dense = [str(v) if v >= -2 else "" for v in rng.integers(-4, 1000, 13)]
        cats = [f"{v:08x}" if v % 5 else "" for v in rng.integers(0, 2**32, 26)]
        lines.append("\t".join([str(rng.integers(0, 2)), *dense, *cats]))
    text = "\n".join(lines)  # no newline at the end
    (tmp_path / "a.tsv").write_text(text)
    (tmp_path / "b").write_bytes(gzip.compress(text.replace("\n", "\r\n").encode()))
    plain = read_criteo(CriteoSource(tmp_path / "a.tsv"))
    zipped = read_criteo(CriteoSource(tmp_path / "b"))
    assert len(plain["label"]) == 50
    for name, column in plain.items():
        assert (column.keys() == zipped[name].keys()).all()
    fields = [line.split("\t") for line in lines]
    assert plain["C26"].values.tolist() == [int(f[39] or "0", 16) for f in fields]
    assert plain["I13"].values.tolist() == [int(f[13] or "0") for f in fields]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("\t".join(GOOD[:-1]), "39 fields; expected 40"),
        ("\t".join([*GOOD, ""]), "41 fields; expected 40"),
        ("", "1 fields; expected 40"),
        ("\t".join(["2", *GOOD[1:]]), "label is '2'; expected 0 or 1"),
        ("\t".join(["", *GOOD[1:]]), "label is ''; expected 0 or 1"),
        ("\t".join(["-0", *GOOD[1:]]), "label is '-0'; expected 0 or 1"),
        ("\t".join(["1", "1.5", *GOOD[2:]]), "I1 is '1.5'; expected an integer"),
        ("\t".join([*GOOD[:13], "-", *GOOD[14:]]), "I13 is '-'; expected an integer"),
        ("\t".join([*GOOD[:14], "xyz", *GOOD[15:]]), "C1 is 'xyz'; expected hexadecimal"),
        ("\t".join([*GOOD[:39], "0" * 17]), "C26 is '00000000000000000'; expected hexadecimal"),
    ],
)
def test_criteo_bad_line_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    good = "\t".join(GOOD)
    path = write_lines(tmp_path / "bad.tsv", [good, good, line, good, "nonsense"])
    with pytest.raises(DataError) as caught:
        read_criteo(CriteoSource(path))
    assert str(caught.value).startswith(f"{path}:3: {reason}")
    lenient = CriteoSource(path, skip_bad_lines=True)
    assert len(read_criteo(lenient)["label"]) == 3
    assert lenient.bad_lines == 2


def test_a_file_is_closed_while_its_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", 700)
    path = write_lines(tmp_path / "bad.tsv", ["nonsense", *["\t".join(GOOD)] * 99])
    with pytest.raises(DataError) as caught:
        read_criteo(CriteoSource(path))
    opened = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
    assert str(path.resolve()) not in opened, caught.value


def test_criteo_bad_line_number_counts_over_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", 700)
    path = write_lines(tmp_path / "bad.tsv", ["\t".join(GOOD)] * 40 + ["1\t2"])
    with pytest.raises(DataError, match=r"bad\.tsv:41: 2 fields"):
        read_criteo(CriteoSource(path))


def test_criteo_damaged_gzip_is_a_data_error(tmp_path: Path) -> None:
    data = gzip.compress(("\t".join(GOOD) + "\n").encode() * 100)
    (tmp_path / "cut.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.gz: cannot read near line"):
        read_criteo(CriteoSource(tmp_path / "cut.gz"))


def test_criteo_endless_line_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteo_module, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(criteo_module, "_LINE_BYTES_MAX", 1000)
    (tmp_path / "zeros").write_bytes(("\t".join(GOOD) + "\n").encode() + b"0" * 2000)
    with pytest.raises(DataError, match=r"zeros: cannot read near line 2: a line of more than"):
        read_criteo(CriteoSource(tmp_path / "zeros"))


def test_criteo_values_of_64_bits(tmp_path: Path) -> None:
    wide = ["0", "-" + "9" * 18, "1234567890", *["7"] * 11, "f" * 16, "123456789", *["1"] * 24]
    path = write_lines(tmp_path / "wide", ["\t".join(GOOD), "\t".join(wide)])
    columns = read_criteo(CriteoSource(path))
    assert columns["I1"].values.tolist() == [-3, -(10**18) + 1]
    assert columns["I2"].values[1] == 1234567890
    assert columns["C1"].values.tolist() == [0, 2**64 - 1]
    assert columns["C2"].values[1] == 0x123456789
    narrow = read_criteo(CriteoSource(write_lines(tmp_path / "narrow", ["\t".join(GOOD)])))
    assert (narrow["C26"].values.dtype, narrow["I1"].values.dtype) == (np.uint32, np.int32)


# ---- The compiled parser equals one that anyone can read

PATTERNS = ["[01]", *["(-?[0-9]{1,18})?"] * 13, *["[0-9a-fA-F]{0,16}"] * 26]
GOOD_FIELDS = st.tuples(
    st.sampled_from(["0", "1"]),
    *[st.sampled_from(["", "0", "-5", "-0", "007", "9" * 9, "9" * 10, "-" + "9" * 18])] * 13,
    *[st.sampled_from(["", "0", "68fd1e64", "DEADBEEF", "0123456789abcdef", "123456789"])] * 26,
)
# fmt: off
BAD_FIELDS = st.sampled_from([
    "", "2", "-", "--1", "+1", "1.5", "9" * 19, "-" + "9" * 19, "g", "0x1", "f" * 17, " 1", "\r",
    "1\r", "/", ":", "`", "@", "G", "1\t2", "\t", "\x00", "\x7f", "\u00e9", "\u3000", "\u0661",
])
# fmt: on


@st.composite
def lines_of_any_kind(draw: st.DrawFn) -> str:
    fields = list(draw(GOOD_FIELDS))
    for _ in range(draw(st.integers(0, 2))):
        fields[draw(st.integers(0, 39))] = draw(BAD_FIELDS)
    ending = draw(st.sampled_from(["", "", "", "\r", "\r\r", "\t", " "]))
    return draw(st.sampled_from(["", "1", "\t" * 39, "\t".join(fields) + ending]))


def reference(line: str) -> list[int | None] | None:
    """The 40 values of a line, None where missing; or None for a malformed line."""
    fields = line.removesuffix("\r").split("\t")
    if len(fields) != 40:
        return None
    matches = zip(PATTERNS, fields, strict=True)
    if not all(re.fullmatch(pattern, field) for pattern, field in matches):
        return None
    bases = [10] * 14 + [16] * 26
    return [int(f, base) if f else None for f, base in zip(fields, bases, strict=True)]


@given(st.lists(st.one_of(lines_of_any_kind(), GOOD_FIELDS.map("\t".join)), max_size=12))
def test_criteo_parser_equals_the_reference(lines: list[str]) -> None:
    text = np.frombuffer("".join(line + "\n" for line in lines).encode(), dtype=np.uint8)
    block = criteo_module.Block(text, len(lines), first_line=1)
    parsed = CriteoSource(Path("log"), skip_bad_lines=True).parse(block)
    samples = [values for line in lines if (values := reference(line)) is not None]
    assert parsed.bad_lines == len(lines) - len(samples)
    assert parsed.missing == sum(value is None for sample in samples for value in sample)
    for position, name in enumerate(COLUMNS):
        column = parsed.frame[name]
        valid = [True] * len(samples) if column.valid is None else column.valid.tolist()
        found = [v if ok else None for v, ok in zip(column.values.tolist(), valid, strict=True)]
        assert found == [sample[position] for sample in samples]
    if parsed.bad_lines:
        first = next(i for i, line in enumerate(lines, 1) if reference(line) is None)
        with pytest.raises(DataError, match=rf"^log:{first}: .*(expected|fields)"):
            CriteoSource(Path("log")).parse(block)
