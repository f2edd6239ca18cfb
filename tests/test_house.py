"""No file imports, by any way round, a file that imports it: at the top, in a function, or for types alone."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import rankscope
from rankscope.cli.app import app
from rankscope.cli.main import _COMMANDS

ROOT = Path(rankscope.__file__).parent


def _name(file: Path) -> str:
    parts = ("rankscope", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that a file names in an import statement, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # of a package either a file in it or what its __init__ hands on
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names
            }
    return found & known


def _graph() -> dict[str, set[str]]:
    files = {_name(file): file for file in ROOT.rglob("*.py")}
    # the façade names its homes as text and for type checkers; nothing below it imports it for more than its version
    files.pop("rankscope")
    return {name: _imports(ast.parse(file.read_text()), set(files)) - {name} for name, file in files.items()}


def _circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files that reach each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for step in sorted(graph[name]):
            if step not in index:
                visit(step)
                low[name] = min(low[name], low[step])
            elif step in stack:
                low[name] = min(low[name], index[step])
        if low[name] == index[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(group)

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_the_search_sees_a_circle() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    assert _circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circles() -> None:
    graph = _graph()
    assert len(graph) > 150
    assert _circles(graph) == []


FLAG = re.compile(r"(?<![\w-])(?<!var\()--[a-z][a-z-]+")  # var(--x) is a property of CSS
OTHER_PROGRAMS = ("hf download ", "pip install ")  # their options stay as they are, in a command to copy


def _texts(tree: ast.Module) -> Iterator[str]:
    """What a file may say: its text literals, those of an f-string together, without the docstrings."""
    silent: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                silent.add(first.value)
        elif isinstance(node, ast.JoinedStr):
            silent.update(node.values)
            yield "…".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            yield node.value


def test_library_messages_name_no_flags() -> None:
    """A caller of the library has parameters; the command line turns `parameter("limit")` into its own option."""
    said = {
        f"{file.relative_to(ROOT)}: {text}"
        for file in ROOT.rglob("*.py")
        if file.relative_to(ROOT).parts[0] != "cli"
        for text in _texts(ast.parse(file.read_text()))
        if FLAG.search(text) and not any(program in text for program in OTHER_PROGRAMS)
    }
    assert said == set()


def test_functions_that_a_library_message_recommends_have_a_command() -> None:
    """As ``parameter("rs.layers(model)")``, which the command line turns into ``rankscope layers``."""
    without = {"rs.chain_exponents"}  # its message is about matrices, which no command takes
    said = {
        found
        for file in ROOT.rglob("*.py")
        if file.relative_to(ROOT).parts[0]
        in ("slicing", "jacobian", "features", "linear", "loading", "deficit", "theory")
        for text in _texts(ast.parse(file.read_text()))
        for found in re.findall(r"\brs\.[a-z_]+(?:\([a-z]+\))?", text)
    }
    assert said - without == set(_COMMANDS)
    assert set(_COMMANDS.values()) <= {f"rankscope {command.name}" for command in app.registered_commands}


def test_the_search_sees_a_flag() -> None:
    code = 'def f(x):\n    """Not --this."""\n    raise ValueError(f"give {x} a smaller --patch")\n'
    assert [bool(FLAG.search(text)) for text in _texts(ast.parse(code))] == [True]
    assert not FLAG.search("a --- b, x--y, 1 -- 2")


def _cuts_an_error(tree: ast.Module) -> bool:
    """Whether text of an exception is split into its lines or cut by hand: ``first_line`` does it."""
    caught = {h.name for h in ast.walk(tree) if isinstance(h, ast.ExceptHandler) and h.name} | {"error"}

    def says_it(node: ast.AST) -> bool:
        texts = (n.value for n in ast.walk(node) if isinstance(n, ast.FormattedValue))
        said = {ast.unparse(n) for n in ast.walk(node)} | {f"str({ast.unparse(n)})" for n in texts}
        return bool({f"str({name})" for name in caught} & said)

    return any(
        (
            isinstance(step, ast.Call)
            and isinstance(step.func, ast.Attribute)
            and step.func.attr in ("splitlines", "split", "partition")
            and says_it(step.func)
        )
        or (isinstance(step, ast.Subscript) and isinstance(step.slice, ast.Slice) and says_it(step.value))
        for step in ast.walk(tree)
    )


def test_an_error_and_its_type_have_one_home() -> None:
    by_hand = {str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if "type(error).__name__}: {" in f.read_text()}
    assert by_hand == set()


def test_the_search_sees_an_error_that_is_cut() -> None:
    caught = "try:\n    f()\nexcept ValueError as raised:\n    "
    for cut in ("str(raised).splitlines()[0]", "str(raised)[:200]", "f'x: {raised}'.split('\\n')[0]"):
        assert _cuts_an_error(ast.parse(caught + cut)), cut
    assert not _cuts_an_error(ast.parse(caught + "f'{name[:3]}: {raised}'"))


def test_the_first_line_of_an_error_has_one_home() -> None:
    by_hand = {str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if _cuts_an_error(ast.parse(f.read_text()))}
    assert by_hand == {"_base/errors.py"}


def test_what_is_close_to_a_misspelt_name_has_one_home() -> None:
    by_hand = {str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if "difflib" in f.read_text()}
    assert by_hand == {"_base/errors.py"}


def _checks(node: ast.AST, helpers: set[str]) -> bool:
    """Whether a function asserts something, raises, or calls what does."""
    for step in ast.walk(node):
        if isinstance(step, ast.Assert | ast.Raise):
            return True
        if isinstance(step, ast.Call):
            name = step.func.attr if isinstance(step.func, ast.Attribute) else getattr(step.func, "id", "")
            if name in helpers or name in ("raises", "warns", "fail") or name.startswith("assert"):
                return True
    return False


def test_every_test_asserts_and_every_exception_is_matched() -> None:
    functions: list[tuple[Path, ast.FunctionDef]] = []
    loose = []
    for file in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                functions.append((file, node))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
                matched = any(k.arg == "match" for k in node.keywords)
                loose += [] if matched else [f"{file.name}:{node.lineno}"]
    helpers: set[str] = set()
    for _ in range(3):  # helpers of helpers
        helpers |= {f.name for _, f in functions if not f.name.startswith("test") and _checks(f, helpers)}
    empty = [
        f"{file.name}:{f.lineno}" for file, f in functions if f.name.startswith("test") and not _checks(f, helpers)
    ]
    assert (loose, empty) == ([], [])


# packages that others import where they are installed, and take for missing otherwise: numba asks for this one
_OPTIONAL = {"coverage"}


def test_no_file_of_tests_or_benchmarks_is_found_as_another_package() -> None:
    """Both folders are searched first, so a file of such a name takes the package's place in the whole process."""
    tests = Path(__file__).parent
    folders = [tests, tests.parent / "benchmarks"]
    elsewhere = [
        path for path in sys.path if path and Path(path).resolve() not in folders and path != str(tests.parent)
    ]
    files = [
        *(f for d in folders for f in d.glob("*.py")),
        *(f.parent for d in folders for f in d.glob("*/__init__.py")),
    ]
    modules = {file.stem for file in files}
    taken = {name for name in modules if PathFinder.find_spec(name, elsewhere) is not None}
    assert taken | modules & (_OPTIONAL | sys.stdlib_module_names) == set()
