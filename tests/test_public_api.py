"""The public names are exactly these, each documented, and the drawn error tree is the real one."""

import ast
import doctest
import importlib
import inspect
import runpy
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

import kinsight
import kinsight.errors
from tests.typechecker import Decorated

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kinsight"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]

PUBLIC_NAMES = [
    "Batch",
    "GradientKernel",
    "Index",
    "Plan",
    "Samples",
    "SimilarityLoss",
    "SimilarityWatcher",
    "Sketch",
    "averages",
    "compare",
    "denoise",
    "export",
    "fit_map",
    "hard_count",
    "label_conflicts",
    "label_suspects",
    "neighbors",
    "plan",
    "power_count",
    "signed_support",
    "sketch",
    "soft_count",
    "uncertainty",
]
ERRORS = [
    value for _, value in inspect.getmembers(kinsight.errors, inspect.isclass) if value.__module__ == "kinsight.errors"
]


def module_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr


def test_exactly_these_names():
    assert sorted(kinsight.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_name_resolves(name: str):
    value = getattr(kinsight, name)
    assert value.__name__ == name
    assert name in dir(kinsight)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        kinsight.no_such_name  # noqa: B018


@pytest.mark.parametrize("first", ["", "import kinsight.neighbors", "import kinsight.labels.suspects"])
def test_neighbors_is_the_function_whatever_was_imported_first(first: str):
    """Importing the submodule sets the attribute of the same name on the package, over the function."""
    code = f"{first}\nimport kinsight\nprint(type(kinsight.neighbors).__name__)"
    assert in_fresh_python(code) == "function"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_shapes_are_checked(path: Path):
    """tests/conftest.py has every module loaded with its annotations checked, none before it could."""
    assert type(load(path).__loader__).__module__ == "tests.typechecker"


def test_wrong_types_and_axes_that_disagree_are_found():
    """The check can fail, each in its way; see tests/typechecker.py."""
    source = """
from typing import TYPE_CHECKING
from kinsight.axes import Outputs, PerSample
if TYPE_CHECKING:
    from fractions import Fraction

def of_arrays(a: Outputs, b: PerSample) -> PerSample:
    return b

def of_others(a: float, b: "Fraction | None" = None) -> str:
    return str(a) if a else a

def within():
    def inner(a: PerSample) -> int:
        return len(a)
    return inner
"""
    made: dict[str, Any] = {"__name__": "made"}
    tree = ast.fix_missing_locations(Decorated().visit(ast.parse(source)))
    exec(compile(tree, "made", "exec", dont_inherit=True), made)
    assert len(made["of_arrays"](torch.zeros(3, 2), torch.zeros(3))) == 3
    assert made["of_others"](1) == "1"  # an int may stand where a float is asked
    assert made["within"]()(torch.zeros(4)) == 4
    for wrong in (
        lambda: made["of_arrays"](torch.zeros(3, 2), torch.zeros(4)), lambda: made["of_arrays"](torch.zeros(3), None),
        lambda: made["of_others"]("one"), lambda: made["of_others"](0), lambda: made["within"]()(torch.zeros(4, 1)),
    ):  # fmt: skip
        with pytest.raises((jaxtyping.TypeCheckError, BeartypeCallHintViolation)):
            wrong()


def test_errors_are_reached_from_the_package():
    code = "import kinsight; print(kinsight.errors.KinsightError.__name__)"
    assert in_fresh_python(code) == "KinsightError"


def drawn_tree() -> dict[str, set[str]]:
    """{class: its bases} as drawn at the top of errors.py; four columns are one level."""
    bases: dict[str, set[str]] = {}
    above: list[str] = []
    for line in inspect.getdoc(kinsight.errors).splitlines():
        text = line.lstrip(" │├└─")
        if not text or not text.split()[0].endswith(("Error", "Warning")):
            continue
        name, builtin = text.split()[0], text.split()[1:2]
        level = (len(line) - len(text)) // 4 - 1
        above[level:] = [name]
        bases[name] = {above[level - 1]} if level else set()
        bases[name] |= {word.strip("()") for word in builtin if word.startswith("(")}
    return bases


@pytest.mark.parametrize("error", ERRORS)
def test_error_is_where_the_tree_draws_it(error: type):
    assert drawn_tree()[error.__name__] == {base.__name__ for base in error.__bases__} - {"Exception"}


def test_tree_draws_nothing_else():
    assert sorted(drawn_tree()) == sorted(error.__name__ for error in ERRORS)


def names_used(path: Path) -> set[str]:
    """Names that are called, raised, or handed to a call: how errors are raised and warnings given."""
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            nodes += [node.func, *node.args, *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.Raise):
            nodes.append(node.exc)
    named = [node for node in nodes if isinstance(node, ast.Name | ast.Attribute)]
    return {ast.unparse(node).rpartition(".")[2] for node in named}


@pytest.mark.parametrize("error", [error for error in ERRORS if not error.__subclasses__()])
def test_error_is_raised_somewhere(error: type):
    raised = any(error.__name__ in names_used(path) for path in MODULES if path.name != "errors.py")
    assert raised, f"nothing in kinsight/ raises {error.__name__}: remove it, or raise it"


def load(path: Path) -> ModuleType:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return importlib.import_module(name.removesuffix(".__init__"))


def silent_methods(cls: type) -> list[str]:
    """Public methods with no text, neither their own nor of the method or attribute that they override."""
    kinds = (FunctionType, classmethod, staticmethod, property)
    declared = {name for base in cls.__mro__[1:] for name in getattr(base, "__annotations__", {})}
    methods = [m for m, v in vars(cls).items() if isinstance(v, kinds) and not m.startswith("_")]
    return [m for m in methods if m not in declared and not first_line(inspect.getdoc(getattr(cls, m)))]


def first_line(text: str | None) -> str:
    return (text or "").split("\n")[0].strip()


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_public_definitions_say_what_they_are(path: Path):
    module = load(path)
    silent = []
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        if is_own and isinstance(value, FunctionType | type):
            silent += [] if first_line(value.__doc__) else [name]
            silent += [f"{name}.{m}" for m in silent_methods(value)] if isinstance(value, type) else []
    assert not silent, f"{module_id(path)}: no first docstring line: {silent}"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_no_doctest_is_lost(path: Path):
    """The decorators that check shapes could hide a function from doctest's finder: it would pass unseen."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    n_written = sum(">>> " in (ast.get_docstring(n) or "") for n in ast.walk(tree) if isinstance(n, kinds))
    found = doctest.DocTestFinder().find(load(path)) if n_written else []
    assert sum(bool(test.examples) for test in found) == n_written


def api_page() -> str:
    page = ROOT / "docs" / "api.md"
    if not page.is_file():
        pytest.fail("docs/api.md is missing: run `make docs`")
    return page.read_text(encoding="utf-8")


def test_api_page_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))
    assert api_page() == script["page"](), "docs/api.md is out of date: run `make docs`"


@pytest.mark.parametrize("name", [*PUBLIC_NAMES, *(error.__name__ for error in ERRORS)])
def test_name_is_on_the_api_page(name: str):
    assert f"`{name}`" in api_page()
