"""The rules of form that this repository keeps, each as a function from sources to offences.

A source is a path relative to the repository root and its text; an offence says where and what.
Nothing here reads the repository except `tracked_sources`, so each rule can be tried on a small
synthetic source. `test_tidy.py` does both.

C++ is not parsed but scanned: comments and literals are blanked, then braces are matched and the
text before each `{` decides what it opens. That is enough for clang-formatted code.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
WIDTH_MAX = 100

# Folder of cpp/ -> the folders it may include, itself aside. The arrows of docs/ARCHITECTURE.md.
CPP_LAYERS: dict[str, frozenset[str]] = {
    "base": frozenset(),
    "io": frozenset({"base"}),
    "log": frozenset({"base", "io"}),
    "cache": frozenset({"base"}),
    "rows": frozenset({"base"}),
    "table": frozenset({"base", "io", "log", "cache", "rows"}),
    "limits": frozenset({"base", "io"}),
    "bindings": frozenset({"base", "io", "log", "cache", "rows", "table", "limits"}),
}
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2)/")
PYTHON_HEADER = re.compile(r"^(Python\.h$|pybind11/|nanobind/|numpy/)")

# One implementation a file, of each of these interfaces.
ONE_A_FILE = ("IoEngine", "EvictionPolicy", "Optimizer", "RowOptimizer")

CPP_SUFFIXES = frozenset({".h", ".cc"})
# Names of machines and workplaces, spelled so that this file passes its own check.
MACHINE_WORDS = ("/wo" + "rk/", "/tm" + "p/w/", "/ro" + "ot/", "/opt/py" + "pi", "far" + "m-")


@dataclass(frozen=True)
class Source:
    """A file: `path` is relative to the repository root, with forward slashes."""

    path: str
    text: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def is_code(self) -> bool:
        return self.suffix in CPP_SUFFIXES or self.suffix == ".py"


@dataclass(frozen=True, order=True)
class Offence:
    """One breach of a rule; `line` counts from 1."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def tracked_sources(root: Path) -> list[Source]:
    """Every text file that git tracks or would add; all files where `root` is no checkout."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        paths = [root / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        skipped = {".venv", "build", "dist", "__pycache__"}
        paths = [p for p in root.rglob("*") if skipped.isdisjoint(p.relative_to(root).parts)]
    sources = []
    for path in sorted(set(paths)):
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        sources.append(Source(path.relative_to(root).as_posix(), text))
    return sources


def check_includes(sources: Iterable[Source]) -> Iterator[Offence]:
    """cpp/ includes downwards only; torch nowhere, Python in bindings alone."""
    sources = [s for s in sources if s.path.startswith("cpp/") and s.suffix in CPP_SUFFIXES]
    headers = {s.path.removeprefix("cpp/") for s in sources}
    for source in sources:
        folder = source.path.split("/")[1]
        if folder not in CPP_LAYERS:
            yield Offence(source.path, 1, f"folder {folder!r} is not a layer of CPP_LAYERS")
            continue
        for number, line in enumerate(source.lines, 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if match is None:
                continue
            quote, target = match.groups()
            layer = target.split("/")[0] if "/" in target else ""  # <limits> is no layer
            if TORCH_HEADER.match(target):
                yield Offence(source.path, number, f"the core includes no torch header: {target}")
            elif PYTHON_HEADER.match(target) and folder != "bindings":
                yield Offence(source.path, number, f"Python header outside bindings: {target}")
            elif quote == '"' and target not in headers:
                yield Offence(source.path, number, f"no such header in cpp/: {target}")
            elif layer in CPP_LAYERS and layer != folder and layer not in CPP_LAYERS[folder]:
                yield Offence(source.path, number, f"{folder} must not include {layer}: {target}")


def check_file_length(sources: Iterable[Source]) -> Iterator[Offence]:
    """Code files have at most FILE_LINES_MAX lines."""
    for source in sources:
        if source.is_code and len(source.lines) > FILE_LINES_MAX:
            what = f"{len(source.lines)} lines, at most {FILE_LINES_MAX}: look for the second idea"
            yield Offence(source.path, FILE_LINES_MAX + 1, what)


def check_width(sources: Iterable[Source]) -> Iterator[Offence]:
    """Lines of code have at most WIDTH_MAX characters."""
    for source in sources:
        if not source.is_code:
            continue
        for number, line in enumerate(source.lines, 1):
            if len(line) > WIDTH_MAX:
                yield Offence(source.path, number, f"{len(line)} characters, at most {WIDTH_MAX}")


@dataclass(frozen=True)
class Function:
    """Where a function is and how long; a Python docstring does not count."""

    name: str
    line: int
    length_lines: int


def python_functions(text: str) -> list[Function]:
    """All functions of a module, nested ones too, from `def` to the last line."""
    functions = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        first = node.body[0]
        if ast.get_docstring(node, clean=False) is not None and first.end_lineno is not None:
            length -= first.end_lineno - first.lineno + 1
        functions.append(Function(node.name, node.lineno, length))
    return functions


_CPP_NOISE = re.compile(
    r'R"(?P<tag>[^\s()\\]{0,16})\(.*?\)(?P=tag)"'  # raw string
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"  # character, not a digit separator
    r"|//[^\n]*"
    r"|/\*.*?\*/"
    r"|^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*",  # preprocessor line, continued ones too
    re.DOTALL | re.MULTILINE,
)


def blank_cpp_noise(text: str) -> str:
    """The text with comments, literals and preprocessor lines as spaces, lines kept."""
    return _CPP_NOISE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


@dataclass
class _Scope:
    kind: str  # "space" (namespace, class, enum), "function" or "other" (initialiser, block)
    name: str = ""
    line: int = 0
    head_start: int = 0


def _opens(head: str, inside: str) -> str:
    """What the brace after `head` opens, within a scope of kind `inside`."""
    if inside != "space":
        return "other"
    head = re.sub(r"\[\[.*?\]\]|\balignas\s*\([^)]*\)", " ", head, flags=re.DOTALL).strip()
    if re.match(r"(inline\s+)?namespace\b|extern\s*$", head):
        return "space"
    if "(" in head and re.search(r"\)\s*(noexcept\b.*)?:[^:].*[\w>]$", head, re.DOTALL):
        return "other"  # a member initialiser: Foo() : bar_{1}
    if re.match(r"(template\s*<.*>\s*)?(class|struct|union|enum)\b", head, re.DOTALL):
        # A return type spelled `struct S f() {` is a function; a class has no argument list.
        return "function" if re.search(r"\w\s*\([^()]*\)\s*(const)?$", head) else "space"
    if "(" in head and not head.endswith("=") and re.search(r"[\w)}>&]$", head):
        return "function"
    return "other"


def cpp_functions(text: str) -> list[Function]:
    """Functions at namespace or class level, from the signature to the closing brace."""
    clean = blank_cpp_noise(text)
    functions: list[Function] = []
    scopes = [_Scope("space")]
    head_start = 0
    for match in re.finditer(r"[{};]|\b(?:public|private|protected)\s*:", clean):
        token, position = match.group(), match.start()
        if token == "{":
            head = clean[head_start:position]
            kind = _opens(head, scopes[-1].kind)
            start = head_start + len(head) - len(head.lstrip())
            name = re.search(r"([\w:~]+)\s*\(", head)
            line = _line_of(clean, start)
            scopes.append(_Scope(kind, name.group(1) if name else "", line, head_start))
        elif token == "}":
            scope = scopes.pop() if len(scopes) > 1 else scopes[0]
            if scope.kind == "function":
                length = _line_of(clean, position) - scope.line + 1
                functions.append(Function(scope.name, scope.line, length))
            elif scope.kind == "other" and scopes[-1].kind == "space":
                head_start = scope.head_start  # it goes on: more member initialisers, or `;`
                continue
        head_start = match.end()
    return functions


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def check_function_length(sources: Iterable[Source]) -> Iterator[Offence]:
    """Functions have at most FUNCTION_LINES_MAX lines."""
    for source in sources:
        if not source.is_code:
            continue
        parse = python_functions if source.suffix == ".py" else cpp_functions
        for function in parse(source.text):
            if function.length_lines > FUNCTION_LINES_MAX:
                what = f"{function.name} has {function.length_lines} lines, at most"
                yield Offence(source.path, function.line, f"{what} {FUNCTION_LINES_MAX}")


def check_opening(sources: Iterable[Source]) -> Iterator[Offence]:
    """Headers open with a comment, Python modules with a docstring; tests need not."""
    for source in sources:
        if source.suffix == ".h" and not source.text.lstrip().startswith(("//", "/*")):
            yield Offence(source.path, 1, "a header opens with what a reader must know")
        is_module = source.suffix == ".py" and not source.path.startswith("tests/")
        if is_module and source.text.strip() and ast.get_docstring(ast.parse(source.text)) is None:
            yield Offence(source.path, 1, "a module opens with a docstring")


def comments(source: Source) -> Iterator[tuple[int, str]]:
    """(line, text without its marker) of each comment line."""
    if source.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("#")
    elif source.suffix in CPP_SUFFIXES:
        for match in _CPP_NOISE.finditer(source.text):
            if match.group().startswith(("//", "/*")):
                first = _line_of(source.text, match.start())
                for number, line in enumerate(match.group().splitlines(), first):
                    yield number, re.sub(r"^\s*(//+|/?\*+)", "", line)


_LEFTOVER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XXX|HACK)\b:?(.*)")


def check_leftovers(sources: Iterable[Source]) -> Iterator[Offence]:
    """A note of work left over gives its reason: three words or more after the mark."""
    for source in sources:
        for number, text in comments(source):
            match = _LEFTOVER.search(text)
            if match and len(match.group(2).split()) < 3:
                yield Offence(source.path, number, f"{match.group(1)} without a reason")


_CPP_STATEMENT = re.compile(
    r"^ ?(?:(?:return|if|for|while|else|auto|const|int|uint\w+|std::\w+)\b.*[;{]"
    r"|[\w.:>\[\]()*-]+\s*[-+*/|&]?=[^=].*;"
    r"|[\w.:>-]+\(.*\);)\s*$"
)


def check_dead_code(sources: Iterable[Source]) -> Iterator[Offence]:
    """No commented-out C++ (ruff's ERA001 sees to Python). Indented examples are welcome."""
    for source in sources:
        if source.suffix not in CPP_SUFFIXES:
            continue
        for number, text in comments(source):
            if _CPP_STATEMENT.match(text):
                yield Offence(source.path, number, f"commented-out code: {text.strip()}")


def check_machine_paths(sources: Iterable[Source]) -> Iterator[Offence]:
    """No path or name of a particular machine, in any text file."""
    for source in sources:
        for number, line in enumerate(source.lines, 1):
            for word in MACHINE_WORDS:
                if re.search(r"(?<![\w.])" + re.escape(word), line):
                    yield Offence(source.path, number, f"names a particular machine: {word}")


def _implementations(source: Source) -> Iterator[tuple[str, str, int]]:
    """(interface, class, line) of each class that derives from an interface of ONE_A_FILE."""
    if source.suffix in CPP_SUFFIXES:
        pattern = r"\b(?:class|struct)\s+(\w+)\s*(?:final\s*)?:\s*(?:public\s+)?(?:\w+::)*(\w+)"
        for match in re.finditer(pattern, blank_cpp_noise(source.text)):
            if match.group(2) in ONE_A_FILE:
                yield match.group(2), match.group(1), _line_of(source.text, match.start())
    elif source.suffix == ".py":
        for node in ast.walk(ast.parse(source.text)):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    name = ast.unparse(base)
                    if name in ONE_A_FILE:
                        yield name, node.name, node.lineno


def check_one_a_file(sources: Iterable[Source]) -> Iterator[Offence]:
    """One engine, one eviction policy, one optimizer a file, in the core and the package."""
    for source in sources:
        if not source.path.startswith(("cpp/", "tiered_emb/")):
            continue
        first: dict[str, str] = {}
        for interface, name, line in _implementations(source):
            if interface in first:
                what = f"{name} shares the file with {first[interface]}: one {interface} a file"
                yield Offence(source.path, line, what)
            first.setdefault(interface, name)


RULES = (
    check_includes,
    check_file_length,
    check_width,
    check_function_length,
    check_opening,
    check_leftovers,
    check_dead_code,
    check_machine_paths,
    check_one_a_file,
)
