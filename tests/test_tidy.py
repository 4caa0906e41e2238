"""The repository keeps its rules of form (tidy_checks.py), and each rule can fail."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import tidy_checks as tidy
from tidy_checks import Offence, Source

Rule = Callable[[Iterable[Source]], Iterator[Offence]]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return tidy.tracked_sources(ROOT)


@pytest.mark.parametrize("rule", tidy.RULES, ids=lambda rule: rule.__name__)
def test_repository(rule: Rule, sources: list[Source]) -> None:
    offences = sorted(rule(sources))
    if offences:
        pytest.fail("\n".join([f"{rule.__doc__}", *map(str, offences)]), pytrace=False)


def test_repository_is_seen(sources: list[Source]) -> None:
    paths = {source.path for source in sources}
    assert {"Makefile", "cpp/base/types.h", "tests/test_tidy.py"} <= paths
    assert not any(path.startswith((".venv/", "build/")) for path in paths)
    seen = [f for s in sources if s.path.endswith(".cc") for f in tidy.cpp_functions(s.text)]
    assert len(seen) > 10


def lines_of(rule: Rule, *sources: Source) -> list[int]:
    return [offence.line for offence in rule(sources)]


def offences_of(rule: Rule, path: str, text: str) -> list[int]:
    return lines_of(rule, Source(path, text))


# ---- Includes

ONE_HEADER_A_LAYER = tuple(Source(f"cpp/{layer}/x.h", "// x\n") for layer in tidy.CPP_LAYERS)


@pytest.mark.parametrize(
    ("layer", "target"),
    [
        ("base", "io"),
        ("io", "log"),
        ("log", "cache"),
        ("log", "rows"),
        ("cache", "log"),
        ("cache", "rows"),
        ("cache", "io"),
        ("rows", "cache"),
        ("rows", "io"),
        ("table", "bindings"),
    ],
)
def test_includes_point_down(layer: str, target: str) -> None:
    bad = Source(f"cpp/{layer}/y.cc", f'// y\n#include "{target}/x.h"\n')
    assert lines_of(tidy.check_includes, *ONE_HEADER_A_LAYER, bad) == [2]


def test_includes_allowed() -> None:
    below = tidy.CPP_LAYERS.keys() - {"bindings", "limits"}  # of the table
    includes = "".join(f'#include "{layer}/x.h"\n' for layer in sorted(below))
    table = Source("cpp/table/y.cc", includes)
    bindings = Source("cpp/bindings/y.cc", includes + "#include <nanobind/nanobind.h>\n")
    log = Source("cpp/log/y.cc", '#include <vector>\n#include "base/x.h"\n#include "io/x.h"\n')
    assert lines_of(tidy.check_includes, *ONE_HEADER_A_LAYER, table, bindings, log) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cpp/bindings/y.cc", "#include <torch/extension.h>"),
        ("cpp/rows/y.cc", "#include <ATen/ATen.h>"),
        ("cpp/table/y.cc", "#include <Python.h>"),
        ("cpp/table/y.cc", "#  include <nanobind/nanobind.h>"),
        ("cpp/base/y.cc", '#include "base/missing.h"'),
        ("cpp/base/y.cc", '#include "y.h"'),
    ],
)
def test_includes_forbidden(path: str, line: str) -> None:
    assert lines_of(tidy.check_includes, *ONE_HEADER_A_LAYER, Source(path, line)) == [1]


def test_folder_outside_the_layers() -> None:
    assert offences_of(tidy.check_includes, "cpp/util/y.cc", "\n") == [1]


# ---- Lengths and width


@pytest.mark.parametrize("path", ["a.py", "cpp/base/a.h", "tests/cpp/a.cc"])
def test_file_length(path: str) -> None:
    assert offences_of(tidy.check_file_length, path, "\n" * 500) == []
    assert offences_of(tidy.check_file_length, path, "\n" * 501) == [501]


def test_width() -> None:
    text = "x" * 100 + "\n" + "é" * 100 + "\n" + "x" * 101
    assert offences_of(tidy.check_width, "a.cc", text) == [3]
    assert offences_of(tidy.check_width, "README.md", text) == []


def test_python_function_length() -> None:
    body = "    pass\n"
    assert offences_of(tidy.check_function_length, "a.py", "def f():\n" + body * 69) == []
    assert offences_of(tidy.check_function_length, "a.py", "\ndef f():\n" + body * 70) == [2]
    nested = "class A:\n    async def f(self):\n" + ("    " + body) * 70
    assert offences_of(tidy.check_function_length, "a.py", nested) == [2]
    documented = 'def f():\n    """' + "\n" * 80 + '    """\n' + body
    assert offences_of(tidy.check_function_length, "a.py", documented) == []


LONG = "  x();\n" * 70


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("f", f"void f() {{\n{LONG}}}\n", 1),
        ("f", f"// {{\nnamespace te {{\nnamespace {{\nint f(int a) {{\n{LONG}}}\n}}\n}}\n", 4),
        ("A::f", f"Status A::f(\n    int a) const noexcept {{\n{LONG}}}\n", 1),
        (
            "g",
            f"class A final : public B {{\n public:\n  void g() override {{\n{LONG}  }}\n}};\n",
            3,
        ),
        (
            "h",
            f"struct A {{\n  int a = 0;\n  template <class T>\n  T h(T t) {{\n{LONG}  }}\n}};\n",
            3,
        ),
        ("A::A", f"A::A(int b)\n    : a_(b),\n      c_{{1, 2}},\n      d_(b) {{\n{LONG}}}\n", 1),
        ("f", f"auto f(std::span<int> s) -> std::vector<int> {{\n{LONG}}}\n", 1),
        ("f", f"void f() {{\n  if (a) {{\n{LONG}  }}\n}}\n", 1),
        ("f", f'void f() {{\n  g("}}", \'}}\', R"(}} ")");  // }}\n{LONG}}}\n', 1),
        ("f", f"#define X {{ \\\n  {{\nvoid f() {{\n{LONG}}}\n", 3),
        ("BOOST_AUTO_TEST_CASE", f"BOOST_AUTO_TEST_CASE(case_name) {{\n{LONG}}}\n", 1),
        ("operator", f"bool A::operator()(int a, int b) const {{\n{LONG}}}\n", 1),
    ],
)
def test_cpp_function_length(name: str, text: str, line: int) -> None:
    offences = list(tidy.check_function_length([Source("cpp/base/a.cc", text)]))
    assert [offence.line for offence in offences] == [line]
    assert offences[0].what.split()[0].endswith(name)


@pytest.mark.parametrize(
    "text",
    [
        "constexpr int kTable[] = {\n" + "  f(1),\n" * 80 + "};\n",
        "const std::map<int, int> kMap{\n" + "  {1, 2},\n" * 80 + "};\n",
        "struct A {\n" + "  int f();\n" * 80 + "};\n",
        "enum class E : uint8_t {\n" + "  k,\n" * 80 + "};\n",
        "namespace te {\n" + "void f() { g(); }\n" * 80 + "}\n",
        "struct A {\n" + "  void f() {\n    g();\n  }\n" * 80 + "};\n",
        "int million = 1'000'000;\n" + "void f() { g('{'); }\n" * 80,
        "void f() {\n" + "  x();\n" * 68 + "}\n",
    ],
)
def test_cpp_without_a_long_function(text: str) -> None:
    assert offences_of(tidy.check_function_length, "cpp/base/a.cc", text) == []


# ---- Words


def test_opening() -> None:
    assert offences_of(tidy.check_opening, "cpp/base/a.h", "#pragma once\n") == [1]
    assert offences_of(tidy.check_opening, "cpp/base/a.h", "// What it is.\n#pragma once\n") == []
    assert offences_of(tidy.check_opening, "cpp/base/a.cc", "#include <array>\n") == []
    assert offences_of(tidy.check_opening, "tiered_emb/a.py", "import os\n") == [1]
    assert offences_of(tidy.check_opening, "tiered_emb/a.py", '"""What it is."""\n') == []
    assert offences_of(tidy.check_opening, "tiered_emb/__init__.py", "") == []


TODO = "TO" + "DO"


def test_leftovers() -> None:
    assert offences_of(tidy.check_leftovers, "a.py", f"x = 1  # {TODO}\n") == [1]
    assert offences_of(tidy.check_leftovers, "a.cc", f"int x;\n// {TODO}: later\n") == [2]
    assert offences_of(tidy.check_leftovers, "a.h", f"/* a\n * {TODO} */\n") == [2]
    reason = f"{TODO}: needs IORING_OP_FTRUNCATE, Linux 6.9"
    assert offences_of(tidy.check_leftovers, "a.cc", f"// {reason}\n") == []
    assert offences_of(tidy.check_leftovers, "a.py", f'x = "{TODO}"\n') == []


@pytest.mark.parametrize(
    "line", ["x = y;", "return x;", "if (a) {", "store.close(now);", "slot->stamp += 1;", "int x;"]
)
def test_dead_code(line: str) -> None:
    assert offences_of(tidy.check_dead_code, "a.cc", f"int a;\n// {line}\n") == [2]
    assert offences_of(tidy.check_dead_code, "a.h", f"// Example:\n//   {line}\n") == []


@pytest.mark.parametrize(
    "line", ["in float32, in order;", "If a row is dirty (see above), it stays.", "cost: O(n);"]
)
def test_prose_is_not_code(line: str) -> None:
    assert offences_of(tidy.check_dead_code, "a.cc", f"// {line}\n") == []


@pytest.mark.parametrize("word", tidy.MACHINE_WORDS)
def test_machine_paths(word: str) -> None:
    assert offences_of(tidy.check_machine_paths, "docs/a.md", f"see\n`{word}a`\n") == [2]
    assert offences_of(tidy.check_machine_paths, "docs/a.md", "the rest of network/work\n") == []


def test_one_a_file() -> None:
    engine = "class {} final : public IoEngine {{}};\n"
    one = engine.format("A")
    assert offences_of(tidy.check_one_a_file, "cpp/io/a.cc", one) == []
    assert offences_of(tidy.check_one_a_file, "cpp/io/a.cc", one + engine.format("B")) == [2]
    policy = "class P : public te::EvictionPolicy {};\n"
    assert offences_of(tidy.check_one_a_file, "cpp/cache/a.cc", one + policy + policy) == [3]
    two = "class SGD(Optimizer): ...\nclass Adam(Optimizer): ...\n"
    assert offences_of(tidy.check_one_a_file, "tiered_emb/optim/a.py", two) == [2]
    assert offences_of(tidy.check_one_a_file, "tests/cpp/a.cc", one + one) == []


# ---- Which files


def test_tracked_sources(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("build/\n")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "a.py").write_text("x = 1\n")
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\x00")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    listed = [source.path for source in tidy.tracked_sources(tmp_path)]
    assert listed == [".gitignore", "a.py"]


def test_offences_say_where() -> None:
    offence = next(iter(tidy.check_width([Source("a.py", "\n" + "x" * 101)])))
    assert str(offence) == "a.py:2: 101 characters, at most 100"
