"""Reports of benchmarks: every section from small JSON, and what damaged or hostile files do."""

from __future__ import annotations

import copy
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tiered_emb.bench.report import files_in, sections_of, shapes, write_report_of
from tiered_emb.bench.report.parts import Spread
from tiered_emb.cli.main import main
from tiered_emb.data import DataError

HOSTILE = '<script src="https://example.org/x.js">alert(1)</script> $\\frac{1}$ & "\u8868"'


def head(name: str) -> dict[str, Any]:
    return {
        "benchmark": name,
        "machine": {"cpu": "A processor", "cores": 4, "memory_bytes": 2**33, "kernel": "6.1"},
        "versions": {"python": "3.11", "torch": "2.13"},
        "commit": "0123456789abcdef",
        "commit_changed": False,
        "date": "2025-01-02T03:04:05+00:00",
        "command": f"tiered-emb bench {name}",
        "smoke": False,
    }


def figure(median: float) -> dict[str, float]:
    return {"p25": median * 0.99, "median": median, "p75": median * 1.01}


def spread(p50: float) -> dict[str, float]:
    return {"p25": p50 * 0.99, "p50": p50, "p75": p50 * 1.01}


def limits() -> dict[str, Any]:
    rows = ("gather_bytes_per_s", "gather_prefetched_bytes_per_s", "update_bytes_per_s")
    streams = ("sequential_read_bytes_per_s", "copy_bytes_per_s", "triad_bytes_per_s")
    return {
        "date": "2025-01-02T03:00:00+00:00",
        "machine": {"cpu": "A processor"},
        "device": "/dev/drive",
        "dram": {
            "arena_bytes": 2**30,
            "streams": [{"threads": 4, **{name: figure(2e10) for name in streams}}],
            "rows": [
                {"row_bytes": size, "threads": 4, **{name: figure(size * 5e7) for name in rows}}
                for size in (64, 256)
            ],
        },
        "ssd": {
            "reads": [
                {
                    "block_bytes": 4096,
                    "queue_depth": depth,
                    "threads": 1,
                    "reads_per_s": figure(depth * 1e4),
                    "latency_p50_us": figure(90),
                    "latency_p99_us": figure(200),
                }
                for depth in (1, 32)
            ],
            "sequential_read_bytes_per_s": figure(2e9),
            "sequential_write_bytes_per_s": figure(1e9),
            "fsync_us": {"p50": figure(900), "p99": figure(3000)},
        },
        "link": None,
    }


def contender(ms: float, noise: float = 0.02) -> dict[str, Any]:
    return {
        "step_ms": {"p50": ms, "p95": ms * 1.2, "p99": ms * 1.5},
        "round_ms_p25": ms * (1 - noise / 2),
        "round_ms_p50": ms,
        "round_ms_p75": ms * (1 + noise / 2),
        "samples_per_s": 256e3 / ms,
        "lookups_per_s": 6656e3 / ms,
    }


def run(share: float, noise: float = 0.02) -> dict[str, Any]:
    return {
        "workload": {
            "name": "dlrm-small", "about": "small", "rows": 10_000, "dim": 16, "batch_size": 256,
            "lookups_a_step": 6656.0, "all_rows_bytes": 680_000,
        },
        "training": {"optimizer": "sgd", "dtype": "float32", "trains": True},
        "tiers": {"dram_bytes": 68_000, "dram_share": share, "ssd": share < 1},
        "contenders": {
            "tiered": contender(20 - 5 * share, noise),
            "tiered, in line": contender(30),
            "layers alone": contender(8),
            "nn.EmbeddingBag": contender(12),
        },
        "left_out": {"FBGEMM (CPU)": "not installed"},
        "work": {
            "unique_rows": 900.0, "weight_bytes": 64, "row_bytes": 68, "optimal_misses": 200.0,
            "misses": 300.0, "blocks_read": 250.0,
        },
        "efficiency": {
            "step_s": 0.02, "bound_s": 0.008, "policy": 0.9, "amplification": 1.1,
            "bandwidth": 0.5, "overlap": 0.8, "binding": "layers", "no_overlap_s": 0.012,
            "eta": 0.4,
        },
        "accounting": {
            "step_s": 0.03, "sum_over_step": 0.98, "closes": True,
            "parts_s": {"ssd": 0.015, "planning": 0.002, "pooling": 0.002, "update": 0.002,
                        "layers": 0.0084},
        },
        "row_hit_ratio": 0.6, "optimal_hit_ratio": 0.7,
    }  # fmt: skip


def study(name: str) -> dict[str, Any]:
    points = [{"x": x, **spread(10 + x)} for x in (1, 10, 100)]
    return {
        "title": f"Lookups by {name}", "x": name, "x_unit": "", "y": "time", "y_unit": "ns",
        "log_x": name == "rows",
        "series": [{"label": label, "points": points} for label in ("tiered", "nn.EmbeddingBag")],
    }  # fmt: skip


def sizes(hbm: float, dram: float | None, ms: float) -> dict[str, Any]:
    return {
        "hbm_bytes": hbm, "dram_bytes": dram, "step_ms": ms, "binding": "ssd",
        "dram_row_hit_ratio": 0.9, "ssd_reads_per_s": 1.5e5, "ssd_written_bytes_a_day": 2.5e12,
    }  # fmt: skip


def curve(name: str, *kinds: str) -> dict[str, Any]:
    points = {"rows": [10, 100, 1000], "misses": [0.5, 0.2, 0.1], "error": [0.02, 0.01, 0.0]}
    return {
        "table": name, "rows": 2000, "lookups_a_step": 640.0, "unique_rows_a_step": 300.0,
        "curves": {kind: copy.deepcopy(points) for kind in kinds},
    }  # fmt: skip


def tune() -> dict[str, Any]:
    best = sizes(0, 8e6, 12.5)
    best |= {"slots": 200, "groups": [["layers", "dram"], ["plan", "ssd"]],
             "busy_ms": {"layers": 4.0, "dram": 2.0, "plan": 1.0, "ssd": 11.5}}  # fmt: skip
    return {
        "model": {"tables": 2, "rows": 2_500_000, "bytes": 3e8, "all_in_dram_bytes": 4e8,
                  "optimizer": "sgd", "dtype": "float32", "batch_size": 1000},
        "recommended": best,
        "front": [sizes(0, 2e6, 30.0), best, sizes(1e6, 9e6, 8.0), sizes(0, None, 7.0)],
        "extra": [{"tier": "dram", "bytes": 2**30, "gain": 0.12}],
        "what_if": [{"optimizer": "sgd", "dtype": "float32", "bytes": 3e8, "step_ms": 12.5},
                    {"optimizer": "adam", "dtype": "float32", "bytes": 9e8, "step_ms": None}],
        "placement": {"gain": 0.03, "worth_it": True, "shares": {"user": 0.25, "item": 1.0},
                      "misses_shared": 90.0, "misses": 70.0},
        "life_years": 0.5,
        "is_projection": False,
        "curves": [curve("all tables", "policy", "lru", "optimum"),
                   *(curve(f"table {i}", "policy") for i in range(12))],
    }  # fmt: skip


def all_reports() -> dict[str, dict[str, Any]]:
    misses = {"optimum": 0.5, "lookahead": 0.55, "lru": 0.7}
    streams = [
        {"name": name, "rows": 1000, "lookups": 10**6, "about": "ids",
         "points": [{"share": s, "misses": misses} for s in (0.01, 0.1)]}
        for name in ("Zipf 1.05", "zipf-1.05")
    ]  # fmt: skip
    busy = {"layers": 0.01, "hbm": 0.0, "link": 0.0, "dram": 0.02, "ssd": 0.015}
    points = [
        {"title": "reads", "unit": "rows/s", "ours": spread(9e4), "limit": 1e5, "of_limit": 0.9},
        {"title": "save", "unit": "ms", "ours": spread(200), "limit": 150, "of_limit": 0.75},
        {"title": "opening", "unit": "s", "ours": spread(0.2), "limit": None, "of_limit": None},
    ]
    platform = {
        "platform": "a server", "year": 2022, "step_s": 0.02, "binding": "dram", "busy_s": busy,
        "model_flop_per_byte": 2.0, "machine_flop_per_byte": 100.0, "samples_per_s": 1e4,
    }  # fmt: skip
    trends = [
        {"edition": f"{y}", "year": y, "busy_s": busy, "binding": "dram"} for y in (2020, 2024)
    ]
    predicted = [{"name": "here", "measured_ms": 10.0, "predicted_ms": 11.0, "error": 0.1}]
    validation = {"predicted": predicted, "within_15_percent": 1}
    return {
        "limits": {**head("limits"), "limits": limits()},
        "dlrm": {**head("dlrm"), "runs": [run(0.1), run(0.5)], "limits": limits()},
        "lookup": {**head("lookup"), "studies": {n: study(n) for n in ("rows", "threads")}},
        "cache": {**head("cache"), "streams": streams},
        "ssd": {**head("ssd"), "points": points},
        "wall": {
            **head("wall"), "projection": [platform], "trends": trends,
            "validation": validation,
        },
        "tune": {**head("tune"), **tune(), "validation": validation},
    }  # fmt: skip


CHARTS = {
    "limits-tiers", "limits-memory", "limits-drive",
    "dlrm-dlrm-small-peers", "dlrm-dlrm-small-cache-size", "dlrm-dlrm-small-hits",
    "dlrm-dlrm-small-breakdown", "dlrm-dlrm-small-bound",
    "lookup-rows", "lookup-threads", "cache-zipf-1-05", "cache-zipf-1-05-2", "ssd-limit",
    "wall-intensity", "wall-projection", "wall-validation",
    "wall-trends-2020", "wall-trends-2024",
    "tune-curves", "tune-tables", "tune-front", "tune-busy", "tune-validation",
}  # fmt: skip


class _Page(HTMLParser):
    """Checks that elements are closed in order; gathers texts, links and images."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of everything, made from files."""
    folder = tmp_path_factory.mktemp("report")
    for name, report in all_reports().items():
        (folder / f"{name}.json").write_text(json.dumps(report))
    assert main(["bench", "report", str(folder), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_every_section_and_chart(full: Path) -> None:
    html = (full / "report.html").read_text(encoding="utf-8")
    page = _Page(html)
    pngs = {path.stem: path.read_bytes() for path in full.glob("*.png")}
    assert set(pngs) == CHARTS
    assert all(data.startswith(b"\x89PNG") for data in pngs.values())
    assert page.tags.count("img") == page.tags.count("figure") == len(CHARTS)
    assert page.tags.count("h2") == 9  # summary, seven benchmarks, terms
    for text in (
        "eta is 0.40", "What binds is the layers", "The largest loss is bandwidth, 0.50",
        "times that of nn.EmbeddingBag", "the accounting closes", "not installed",
        "Our cache's misses over the optimum's: 1.10 with Zipf 1.05",
        "A processor, 4 cores, 8 GiB, kernel 6.1; python 3.11, torch 2.13; commit 0123456789; ",
        "; 2025-01-02T03:04:05+00:00; tiered-emb bench dlrm",
        "Recommended for 2 tables of 2.5M rows (286 MiB): 7.63 MiB of dram before an ssd.",
        "Predicted: 12.5 ms a step, 80,000 samples/s; what binds is ssd.",
        "read 150,000 times a second; 2.50 TB are written to it a day",
        "at which the drive lasts 183 days.", "adam, float32858 MiBtoo small",
        "Shares of dram for single tables: +3.0%, worth it (70.0 rows read a step instead of 90.0)",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.text.count("tiered-emb bench limits") == 1  # the same limits are shown once


def test_nothing_comes_from_elsewhere(full: Path) -> None:
    html = (full / "report.html").read_text(encoding="utf-8")
    page = _Page(html)
    assert "http" not in re.sub(r"base64,[\w+/=]*|http-equiv", "", html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value is not None
            assert value.startswith(("data:image/png;base64,", "#"))
    assert len(html) < 2_000_000


def warnings_of(*reports: dict[str, Any]) -> str:
    checked = [report for given in reports for report in shapes.checked(given, "x")]
    return " ".join(text for section in sections_of(checked) for text in section.warnings)


def test_noise_is_told() -> None:
    quiet, noisy = ({**head("dlrm"), "runs": [run(0.1, noise)]} for noise in (0.02, 0.3))
    told = warnings_of(noisy)
    assert "too noisy for 1 of 4 figures" in told
    assert "tiered with 10% in dram (30%)" in told
    assert warnings_of(quiet) == ""
    cached = {**head("limits"), "limits": limits()}
    cached["limits"]["ssd"]["is_direct"] = False
    assert "are the page cache's" in warnings_of(cached)
    again = copy.deepcopy(quiet)
    again["runs"][0]["contenders"]["tiered"] = contender(25)
    told = warnings_of(quiet, again)
    assert "repeated, these medians moved by more than 10%: tiered with 10% in dram (28%)" in told


def test_spread() -> None:
    assert not Spread(9.6, 10, 10.5).is_noisy
    assert Spread(9, 10, 10.5).is_noisy
    assert Spread(1, 2, 4).under(8) == Spread(2, 4, 8)
    assert Spread(9, 10, 12).cells == ("10.0", "9.00 to 12.0 (30%: noisy)")


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    only = all_reports()["wall"]
    only.update(trends=[], validation=None, smoke=True)
    only["projection"][0]["model_flop_per_byte"] = None
    page = _Page(write_report_of([{"reports": [only]}], tmp_path).read_text())
    assert [path.name for path in tmp_path.glob("*.png")] == ["wall-projection.png"]
    assert page.tags.count("h2") == 3
    assert "Smoke run" in page.text


def test_sizes_of_tiers_with_a_device_are_a_projection(tmp_path: Path) -> None:
    report = {**head("tune"), **tune(), "is_projection": True, "curves": [], "placement": None}
    report["extra"], report["what_if"], report["life_years"] = [], [], None
    report["recommended"] = {**report["recommended"], **sizes(2**20, None, 20.0)}
    report["front"] = [sizes(2.0**i, 1e6, 500.0 / 2**i) for i in range(10, 20)]
    page = _Page(write_report_of([report], tmp_path).read_text())
    assert {p.stem for p in tmp_path.glob("*.png")} == {"tune-front", "tune-busy"}
    assert "Projected: 20.0 ms a step" in page.text
    assert "are a projection: the device's figures are those of its data sheet" in page.text
    assert "1 MiB of hbm and all rows in dram" in page.text
    assert "Nothing overlaps here" in page.text  # 18.5 ms of work in 20
    assert "The ssd is read" not in page.text


def test_curves_of_different_lengths_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    report = {**head("tune"), **tune()}
    report["curves"][0]["curves"]["lru"]["misses"] = [0.5]
    report["curves"][1]["curves"]["policy"]["rows"] = [10]
    report["curves"][2]["table"] = HOSTILE
    report["curves"][4]["table"] = report["curves"][5]["table"] = "a long name " * 9
    page = _Page(write_report_of([report], tmp_path).read_text())
    assert "script" not in page.tags
    assert "table 11" in page.text
    assert page.text.count("a long name a long name") == 2


def test_hostile_text_is_text(tmp_path: Path) -> None:
    reports = all_reports()
    report, lookup = reports["dlrm"], reports["lookup"]
    report["command"] = report["machine"]["cpu"] = HOSTILE
    del report["limits"], report["runs"][1]
    report["runs"][0]["workload"]["name"] = HOSTILE
    report["runs"][0]["contenders"][HOSTILE] = contender(9)
    report["runs"][0]["left_out"][HOSTILE] = HOSTILE
    lookup["studies"] = {"../../x": {**study("rows"), "title": HOSTILE, "x": HOSTILE}}
    html = write_report_of([report, lookup], tmp_path / "out").read_text(encoding="utf-8")
    page = _Page(html)
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "lookup-x.png").is_file()


def _without(path: str) -> dict[str, Any]:
    report: Any = all_reports()["dlrm"]
    *way, last = path.split(".")
    inner = report
    for name in way:
        inner = inner[int(name) if name.isdecimal() else name]
    del inner[last]
    return dict(report)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"a": 1}', "benchmark is missing"),
        ('{"benchmark": "other"}', "benchmark is 'other'"),
        (json.dumps(_without("versions")), "versions is missing"),
        (json.dumps(_without("runs.1.efficiency.eta")), "runs[1].efficiency.eta is missing"),
        (json.dumps(_without("runs.0.contenders.tiered")), "runs[0].contenders has no 'tiered'"),
        (json.dumps({**all_reports()["ssd"], "points": []}), "points is not a list of one or more"),
        (json.dumps({"reports": [{"benchmark": "wall"}]}), "reports[0]: damaged report"),
        (
            json.dumps({**head("tune"), **tune(), "front": [sizes(0, 0.0, 1.0)]}),
            "front[0].dram_bytes is not a number above 0",
        ),
        (
            json.dumps(all_reports()["dlrm"]).replace('"eta": 0.4', '"eta": NaN'),
            "runs[0].efficiency.eta is not a number above 0",
        ),
    ],
)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["bench", "report", str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(path) in err
    assert told in err
    assert not (tmp_path / "out").exists()


def test_no_file_and_no_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bench", "report", str(tmp_path / "absent"), "--out", str(tmp_path)]) == 2
    assert "absent: No such file" in capsys.readouterr().err
    assert main(["bench", "report", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "no JSON of tiered-emb bench there" in capsys.readouterr().err
    assert files_in(tmp_path) == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DataError, match="pip install matplotlib"):
        write_report_of([all_reports()["ssd"]], tmp_path)
