"""The tree shows the architecture: a module imports only modules listed above it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kinsight"

ORDER: dict[str, list[str]] = {
    "errors": [],
    "axes": [],
    "progress": [],
    "batches": [],
    "readers": [],
    "samples": [],
    "namesakes": [],
    "files": [],
    "checkpoints": [],
    "sources": [],
    "outputs": [],
    "parameters": [],
    "gradients": [
        "contractions",
        "costs",
        "projection",
        "scratch",
        "base",
        "built",
        "factored",
        "convolved",
        "looked_up",
        "summed",
        "products",
    ],
    "whitening": [],
    "normalization": [],
    "captures": [
        "running",
        "nodes",
        "graph",
        "steady",
        "layouts",
        "capture",
        "company",
    ],
    "rules": [],
    "reference": [],
    "differentiation": [
        "trace",
        "weights",
        "layer_by_layer",
        "generic",
        "coverage",
        "batch_gradients",
        "unit_gradients",
        "differentiate",
        "footprint",
        "forward_mode",
    ],
    "stream": [],
    "kernel": [],
    "identity": [],
    "live": [],
    "sketch": [],
    "plan": [],
    "neighbors": [],
    "unit_sum": [],
    "density": [],
    "labels": [
        "votes",
        "leave_one_out",
        "calibration",
        "folds",
        "suspects",
        "conflicts",
    ],
    "kernel_products": [],
    "averages": [],
    "denoising": [
        "smoother",
        "least_squares",
        "misfit",
        "assumptions",
        "denoise",
    ],
    "uncertainty": [],
    "fit": [],
    "agreement": [],
    "stability": [],
    "baselines": [],
    "training": [
        "pairs",
        "running",
        "second_derivatives",
        "second_order",
        "parts",
        "by_pairs",
        "by_groups",
        "enforcing",
        "loss",
        "watching",
    ],
    "callbacks": [],
    "indexing": [
        "durable",
        "manifest",
        "store",
        "rows",
        "about",
        "worker",
        "on_ray",
        "engine",
        "building",
        "queries",
        "search",
        "knn",
        "exchange",
        "approximate",
        "audits",
        "denoising_sums",
        "contents",
        "sketched",
        "questions",
    ],
    "index": [],
    "exports": [],
    "explorer": [],
    "cli": [],
}
"""Modules, and where a package has an order of its own, those in it."""

CATCH_ALLS = {"utils", "util", "common", "core", "helpers", "helper", "manager", "misc"}
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    path
    for top in sorted(ROOT.iterdir())
    if not top.name.startswith(".") and top.name not in {"tests", "build", "dist", "runs"}
    for path in (sorted(top.rglob("*.py")) if top.is_dir() else [top] * (top.suffix == ".py"))
]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> list[str]:
    """["kinsight", "rules", "linear"] for kinsight/rules/linear.py; an __init__ names its package."""
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(tree: ast.Module, *, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of every import, in functions and `if TYPE_CHECKING` too; relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + (node.module.split(".") if node.module else []))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(source: str, *, path: Path) -> list[str]:
    """Imports in the source of kinsight file `path` that point at the package itself or at a module below."""
    name = dotted(path)
    package = name if path.name == "__init__.py" else name[:-1]
    found = []
    for line, target in imported(ast.parse(source), package=package):
        parts = target.split(".")
        if parts[0] != "kinsight":
            continue
        if len(parts) < 2 or parts[1] not in ORDER:
            found.append(f"{relative(path)}:{line} imports {target!r}: import from a module in the order")
        elif is_below(parts[1:], name[1:]):
            found.append(f"{relative(path)}:{line} imports {target!r}, which is listed below {'.'.join(name[1:])!r}")
    return found


def is_below(target: list[str], name: list[str]) -> bool:
    """Whether what is imported comes after who imports it: in the package, or in the folder that is home to both."""
    top, inner = list(ORDER), ORDER[name[0]]
    if target[0] != name[0]:
        return top.index(target[0]) > top.index(name[0])
    if len(name) < 2 or not inner:  # an __init__ hands on what is in its folder
        return False
    return len(target) < 2 or target[1] not in inner or inner.index(target[1]) > inner.index(name[1])


def inner_files() -> list[Path]:
    return [path for path in FILES if path not in {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}]


def listed() -> set[str]:
    return {*ORDER, *(f"{name}.{module}" for name, inner in ORDER.items() for module in inner)}


def there() -> set[str]:
    """Those of folders without an order are not told apart."""
    names = [dotted(path)[1:] for path in inner_files()]
    return {name[0] for name in names} | {".".join(name) for name in names if len(name) > 1 and ORDER.get(name[0])}


def test_every_module_is_in_the_order():
    unknown = sorted(there() - listed())
    assert not unknown, f"modules that tests/test_layout.py does not list: {unknown}"


def test_every_listed_module_exists():
    missing = sorted(listed() - there())
    assert not missing, f"modules listed in tests/test_layout.py that are not in kinsight/: {missing}"


@pytest.mark.parametrize("path", inner_files(), ids=relative)
def test_imports_only_modules_listed_above(path: Path):
    if dotted(path)[1] not in ORDER:
        pytest.fail(f"{relative(path)} is not in the order")
    assert not violations(path.read_text(encoding="utf-8"), path=path)


@pytest.mark.parametrize(
    "line",
    [
        "import kinsight",
        "import kinsight.cli",
        "from kinsight import GradientKernel",
        "from kinsight import cli",
        "from kinsight.cli import main",
        "from . import cli",
        "from .cli import main",
        "if TYPE_CHECKING:\n    from kinsight.labels.suspects import label_suspects",
        "def f():\n    from kinsight.density import soft_count",
    ],
)
def test_a_wrong_import_is_found(line: str):
    assert len(violations(line, path=PACKAGE / "kernel.py")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from kinsight.captures.graph import uses",
        "from kinsight.captures import steady",
        "from .company import alone",
        "from kinsight import captures",
    ],
)
def test_a_wrong_import_within_a_folder_is_found(line: str):
    assert len(violations(line, path=PACKAGE / "captures" / "nodes.py")) == 1


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("from kinsight.errors import ShapeError", "kernel.py"),
        ("from kinsight import rules", "kernel.py"),
        ("from .errors import ShapeError", "kernel.py"),
        ("from ..errors import ShapeError", "rules/linear.py"),
        ("from .linear import Linear", "rules/__init__.py"),
        ("from kinsight.captures.running import untouched", "captures/nodes.py"),
        ("from kinsight.gradients.base import Gradients", "gradients/__init__.py"),
        ("import torch", "errors.py"),
    ],
)
def test_a_right_import_is_let_through(line: str, file: str):
    assert violations(line, path=PACKAGE / file) == []


def test_no_catch_all_modules():
    found = [relative(path) for path in FILES if CATCH_ALLS & {part.strip("_") for part in dotted(path)}]
    assert not found, f"names that say nothing about what is inside: {found}"


def test_no_long_files():
    sizes = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    too_long = {name: size for name, size in sizes.items() if size > MAX_FILE_LINES}
    assert not too_long, f"files over {MAX_FILE_LINES} lines: {too_long}"


def test_no_long_functions():
    too_long = [
        f"{relative(path)}:{node.lineno} {node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not too_long, f"functions over {MAX_FUNCTION_LINES} lines: {too_long}"


@pytest.mark.parametrize("module", ["kinsight", "kinsight.cli"])
def test_import_leaves_torch_alone(module: str):
    """`kinsight --help` answers at once: torch alone takes more than a second to import."""
    code = f"import {module}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
