"""Writes docs/api.md from the docstrings of the public names, as written in the source.

Nothing but `kinsight.__all__` is imported: signatures are shown as they stand in the source (`GramBlock`, not
what it expands to), so the page is the same on every machine.
"""

import ast
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kinsight

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kinsight"
PAGE = ROOT / "docs" / "api.md"

Function = ast.FunctionDef | ast.AsyncFunctionDef
MAX_WIDTH = 100

FURTHER = {
    "kinsight.training.pairs": ["Augmented"],
    "kinsight.training.loss": ["ramp"],
    "kinsight.callbacks.lightning": ["SimilarityCallback"],
    "kinsight.callbacks.transformers": ["SimilarityCallback"],
    "kinsight.exports": ["as_table", "knn_graph", "cleanlab_issues", "map_table"],
    "kinsight.sources": ["load_model", "load_samples"],
    "kinsight.labels.folds": ["Folds"],
    "kinsight.explorer.report": ["write_report"],
    "kinsight.explorer.trajectory": ["write_trajectory"],
    "kinsight.baselines": [],
}
"""What the documentation imports from modules, by module; an empty list is all that there is."""

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Warns|Examples?|References?|Notes?):(?: (.*))?")
ENTRY = re.compile(r"(?P<name>\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*)(?: \([^)]*\))?: (?P<text>.*)")


@dataclass(frozen=True)
class Definition:
    """A class or function of the package, with the source it stands in."""

    module: str
    node: Function | ast.ClassDef
    source: str

    def text(self, node: ast.expr) -> str:
        """The expression as written, on one line."""
        return " ".join((ast.get_source_segment(self.source, node) or "").split())


def definitions() -> dict[str, list[Definition]]:
    """Every public class and function at the top of a module, by name."""
    found: dict[str, list[Definition]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(source).body:
            if isinstance(node, Function | ast.ClassDef) and is_public(node):
                found.setdefault(node.name, []).append(Definition(module, node, source))
    return found


def is_public(node: Function | ast.ClassDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return (not node.name.startswith("_") or node.name == "__call__") and "overload" not in " ".join(decorators)


def the_one(name: str, known: dict[str, list[Definition]]) -> Definition:
    places = known.get(name, [])
    if len(places) != 1:
        where = ", ".join(place.module for place in places) or "no module"
        raise SystemExit(f"public name {name!r} should be defined in one module, and is in {where}")
    return places[0]


# -------------------------------------------------------------------------------- signatures


def arguments(function: Function, definition: Definition, *, is_method: bool) -> list[str]:
    """Each argument with annotation and default, and the bare `*` and `/` between them."""
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [*[None] * (len(positional) - len(spec.defaults)), *spec.defaults]
    shown = [argument(a, d, definition) for a, d in zip(positional, defaults, strict=True)]
    if spec.posonlyargs:
        shown.insert(len(spec.posonlyargs), "/")
    if spec.vararg:
        shown.append("*" + argument(spec.vararg, None, definition))
    elif spec.kwonlyargs:
        shown.append("*")
    shown += [argument(a, d, definition) for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    if spec.kwarg:
        shown.append("**" + argument(spec.kwarg, None, definition))
    return shown[1:] if is_method else shown


def argument(node: ast.arg, default: ast.expr | None, definition: Definition) -> str:
    text = node.arg + (f": {definition.text(node.annotation)}" if node.annotation else "")
    if default is None:
        return text
    return f"{text}{' = ' if node.annotation else '='}{definition.text(default)}"


def call(name: str, shown: list[str], returns: str = "") -> str:
    """`name(a, b) -> returns`, one argument a line where it does not fit on one."""
    line = f"{name}({', '.join(shown)}){returns}"
    if len(line) <= MAX_WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {text}," for text in shown), f"){returns}"])


def signature(function: Function, definition: Definition, *, owner: str = "") -> str:
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    returns = f" -> {definition.text(function.returns)}" if function.returns else ""
    if {"property", "functools.cached_property", "cached_property"} & set(decorators):
        return f"{owner}.{function.name}{returns.replace(' -> ', ': ')}"
    is_method = bool(owner) and "staticmethod" not in decorators
    shown = arguments(function, definition, is_method=is_method)
    return call(f"{owner}.{function.name}" if owner else function.name, shown, returns)


def class_signature(definition: Definition, known: dict[str, list[Definition]]) -> str:
    """How to make one: the arguments of `__init__`, else the annotated fields."""
    node = definition.node
    for place in line_of_descent(definition, known):
        for method in place.node.body:
            if isinstance(method, Function) and method.name == "__init__":
                return "class " + call(node.name, arguments(method, place, is_method=True))
    fields = [
        f"{definition.text(field.target)}: {definition.text(field.annotation)}"
        + (f" = {definition.text(field.value)}" if field.value else "")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and not definition.text(field.target).startswith("_")
    ]
    return "class " + call(node.name, fields) if fields else f"class {node.name}"


# -------------------------------------------------------------------------------- docstrings


def markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown: entries become lists, formulas and examples fenced blocks."""
    title, section = "", list[str]()
    parts = []
    for line in [*inspect.cleandoc(docstring).splitlines(), "End:"]:
        match = SECTION.fullmatch(line)
        if match or line == "End:":
            parts.append(section_markdown(title, "\n".join(section)))
            title, section = (match[1], [match[2] or ""]) if match else ("", [])
        else:
            section.append(line)
    return "\n\n".join(part for part in parts if part)


def section_markdown(title: str, text: str) -> str:
    body = inspect.cleandoc(text)
    body = entries(body) if title in {"Args", "Attributes", "Raises", "Warns"} else fenced(body)
    return f"**{title}**\n\n{body}" if title else body


def entries(text: str) -> str:
    items: list[str] = []
    for line in text.splitlines():
        match = ENTRY.fullmatch(line)
        if match and not line.startswith(" "):
            items.append(f"- `{match['name']}`: {match['text']}")
        elif line.strip():
            items.append(f"  {line.strip()}")
    return "\n".join(items)


def fenced(text: str) -> str:
    """Prose as it is; runs of indented lines and of doctest lines between fences."""
    out: list[str] = []
    fence = ""
    for line in text.splitlines():
        is_blank, is_indented = not line.strip(), line.startswith("    ")
        if not fence and line.startswith((">>> ", "    ")):
            fence = "pycon" if line.startswith(">>>") else "text"
            out += ([""] if out and out[-1] else []) + [f"```{fence}"]
        elif (fence == "pycon" and is_blank) or (fence == "text" and not is_blank and not is_indented):
            close(out)
            fence = ""
        out.append(line.removeprefix("    ") if fence == "text" else line)
    if fence:
        close(out)
    return "\n".join(out).strip()


def close(out: list[str]) -> None:
    """End a fenced block, leaving no blank line inside its end and one after it."""
    while not out[-1].strip():
        out.pop()
    out += ["```", ""]


# -------------------------------------------------------------------------------- the page


def entry(definition: Definition, known: dict[str, list[Definition]]) -> Iterator[str]:
    """Heading, signature and text of one name, then of its public methods, inherited ones last."""
    node = definition.node
    shown = class_signature(definition, known) if isinstance(node, ast.ClassDef) else signature(node, definition)
    yield f"### `{node.name}`\n\n```python\n{shown}\n```\n\nIn `{definition.module}`."
    yield markdown(ast.get_docstring(node) or "")
    for place in line_of_descent(definition, known):
        for method in place.node.body:
            if isinstance(method, Function) and is_public(method) and ast.get_docstring(method):
                yield f"#### `{node.name}.{method.name}`"
                yield f"```python\n{signature(method, place, owner=node.name)}\n```"
                yield markdown(ast.get_docstring(method) or "")


def line_of_descent(definition: Definition, known: dict[str, list[Definition]]) -> Iterator[Definition]:
    """A class, and those classes of the package that it inherits from; none for a function."""
    if isinstance(definition.node, ast.ClassDef):
        yield definition
        for base in definition.node.bases:
            for place in known.get(ast.unparse(base), []):
                yield from line_of_descent(place, known)


def annotations(definition: Definition) -> Iterator[ast.expr]:
    """What the public signatures of a definition mention, fields and methods included."""
    for node in ast.walk(definition.node):
        if isinstance(node, Function) and (is_public(node) or node.name == "__init__"):
            spec = node.args
            every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
            yield from (a.annotation for a in every if a and a.annotation)
            yield from ([node.returns] if node.returns else [])
    if isinstance(definition.node, ast.ClassDef):
        yield from (field.annotation for field in definition.node.body if isinstance(field, ast.AnnAssign))


def mentioned(shown: list[Definition], known: dict[str, list[Definition]]) -> list[Definition]:
    """Classes of the package in the signatures of what is shown, and in their own signatures, by name."""
    found = {definition.node.name: definition for definition in shown}
    waiting = list(shown)
    while waiting:
        for annotation in annotations(waiting.pop()):
            for name in sorted({part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}):
                places = [place for place in known.get(name, []) if isinstance(place.node, ast.ClassDef)]
                if len(places) == 1 and name not in found:
                    found[name] = places[0]
                    waiting.append(places[0])
    return [found[name] for name in sorted(found) if found[name] not in shown]


def errors_section() -> Iterator[str]:
    tree = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8"))
    yield fenced(ast.get_docstring(tree) or "")
    rows = [
        f"| `{node.name}` | {(ast.get_docstring(node) or '').splitlines()[0]} |"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    ]
    yield "\n".join(["| in `kinsight.errors` | when |", "| --- | --- |", *rows])


def array_types_section() -> Iterator[str]:
    source = (PACKAGE / "axes.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    first, _, letters = (ast.get_docstring(tree) or "").partition("\n")
    yield f"{first}\n\n```text\n{letters.strip()}\n```"
    rows = []
    for node, after in itertools.pairwise(tree.body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr):
            name, value = ast.unparse(node.targets[0]), ast.get_source_segment(source, node.value)
            rows.append(f"| `{name}` | `{value}` | {' '.join(str(ast.literal_eval(after.value)).split())} |")
    yield "\n".join(["| name | type | holds |", "| --- | --- | --- |", *rows])


def contents(title: str, shown: list[Definition], anchors: Counter[str]) -> str:
    """Links to the headings; of two that differ only in case (neighbors, Neighbors) the second gets a -1."""
    links = []
    for name in [definition.node.name for definition in shown]:
        n_before = anchors[name.lower()]
        anchors[name.lower()] += 1
        links.append(f"[`{name}`](#{name.lower()}{f'-{n_before}' if n_before else ''})")
    return f"{title}: {', '.join(links)}."


def bases(definition: Definition) -> list[str]:
    """Of a class; none of a function."""
    return [ast.unparse(base) for base in getattr(definition.node, "bases", [])]


def in_module(module: str, names: list[str], known: dict[str, list[Definition]]) -> list[Definition]:
    """What a module, or the modules of a folder, have of these names; all, where there are none."""
    places = [place for places in known.values() for place in places]
    found = [place for place in places if place.module == module or (not names and place.module.startswith(module))]
    if not names:
        return found
    by_name = {place.node.name: place for place in found}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise SystemExit(f"there is no {missing[0]} in {module}")
    return [by_name[name] for name in names]


def page() -> str:
    """The whole text of docs/api.md."""
    known = definitions()
    public = [the_one(name, known) for name in sorted(kinsight.__all__)]
    outputs = [
        place
        for places in known.values()
        for place in places
        if place.module == "kinsight.outputs" and "OutputFunction" in {place.node.name, *bases(place)}
    ]
    further = [place for module, names in FURTHER.items() for place in in_module(module, names, known)]
    shown = public + outputs + further
    others = [place for place in mentioned(shown, known) if place.module != "kinsight.errors"]
    groups = [
        ("Public names", public), ("Output functions", outputs), ("Further names, by module", further),
        ("Types in the signatures", others),
    ]  # fmt: skip
    parts = ["# API", "Written by `make docs` from the docstrings. Do not edit it: edit those."]
    anchors = Counter[str]()
    parts += [contents(title, shown, anchors) for title, shown in groups if shown]
    for title, shown in groups:
        if shown:
            parts.append(f"## {title}")
            parts += [part for definition in shown for part in entry(definition, known)]
    parts += ["## Errors and warnings", *errors_section(), "## Array types", *array_types_section()]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT).as_posix()}")
