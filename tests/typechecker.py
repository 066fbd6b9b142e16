"""Checks types and shapes on every call of the package, in the tests.

Functions and classes that name arrays are checked by jaxtyping, which binds axis letters for a whole call: [n c] and
[n] have to agree on n; so are those that name what only type checkers import. All others are checked by beartype alone,
which costs a fraction of that; functions within functions, made anew at each call, only if they name arrays.
"""

import ast
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

PACKAGE = "kinsight"

typed = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand where a float is asked
shaped = jaxtyping.jaxtyped(typechecker=typed)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """By beartype, unless jaxtyping is told to check nothing."""
    with_types = typed(function)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else with_types)(*arguments, **options)

    return call


def array_names() -> set[str]:
    """What annotations call arrays: the types of axes.py, and what those are made of."""
    tree = ast.parse((Path(__file__).parent.parent / PACKAGE / "axes.py").read_text(encoding="utf-8"))
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    found = {target.id for target in assigned if isinstance(target, ast.Name)}
    assert "GramBlock" in found
    return {*found, "Float", "Int", "Bool"}


def _with(decorator: str, node: ast.stmt) -> ast.expr:
    made = ast.parse(f"__import__('tests.typechecker').typechecker.{decorator}", mode="eval").body
    for part in ast.walk(made):
        ast.copy_location(part, node)
    return made


class Decorated(ast.NodeTransformer):
    """A module whose functions and classes are checked."""

    def __init__(self) -> None:
        self.names = array_names()
        self.depth = 0

    def visit_If(self, node: ast.If) -> ast.If:
        """What is imported under TYPE_CHECKING is not there when beartype looks."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            imports = [part for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom)]
            self.names |= {alias.asname or alias.name for part in imports for alias in part.names}
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Fields of dataclasses are checked as arguments are."""
        self.generic_visit(node)
        node.decorator_list.insert(0, _with("shaped", node))  # around @dataclass
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Last in the list, next to the function itself: other decorators take annotations away."""
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        if self._names_any(node):
            node.decorator_list.append(_with("shaped", node))
        elif not self.depth:
            node.decorator_list.append(_with("checked", node))
        return node

    def _names_any(self, node: ast.FunctionDef) -> bool:
        return any(isinstance(part, ast.Name) and part.id in self.names for part in ast.walk(node))


class _Loader(SourceFileLoader):
    """Compiles what is checked, and leaves the bytecode of the package itself alone."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = Decorated().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PACKAGE and not fullname.startswith(f"{PACKAGE}."):
            return None
        found: Any = PathFinder.find_spec(fullname, path, target)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


def install() -> None:
    """From here on whatever is imported of the package is checked."""
    sys.meta_path.insert(0, _Finder())
