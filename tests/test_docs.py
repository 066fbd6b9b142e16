"""Every Python block of the documentation runs and prints what it says; links and `make` targets are there.

Blocks fenced as ```python run in order, in one namespace a page, in an empty folder. A comment `# -> text`
after a statement is what it prints, or the value it has; further lines of output are
further `# -> ` comments. `...` stands for anything, and spacing does not matter.
"""

import ast
import contextlib
import doctest
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import page as benchmarks_page
from experiments import page as experiments_page

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
API_PAGE = ROOT / "docs" / "api.md"  # written from docstrings: its examples run as doctests
BENCHMARKS_PAGE = ROOT / "docs" / "benchmarks.md"
EXPERIMENTS_PAGE = ROOT / "docs" / "experiments.md"
PAGES = [README, *sorted(page for page in (ROOT / "docs").glob("*.md") if page != API_PAGE)]
LINKED = [*PAGES, API_PAGE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|\b(?:src|href)=\")([^)\s\"]+)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
EXPECTED = "# -> "


@dataclass(frozen=True)
class Step:
    """One statement of a page, and what it is said to print."""

    node: ast.stmt
    expected: str | None


class DocumentationError(AssertionError):
    """A page says something that is not so."""


def read(page: Path) -> str:
    if not page.is_file():
        pytest.fail(f"{page.relative_to(ROOT).as_posix()} is missing")
    return page.read_text(encoding="utf-8")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def expectations(source: str) -> dict[int, str]:
    """{line: text} of the `# -> text` comments; a string that looks like one is not one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [t for t in tokens if t.type == tokenize.COMMENT and t.string.startswith(EXPECTED)]
    return {t.start[0]: t.string.removeprefix(EXPECTED) for t in comments}


def steps(text: str) -> Iterator[Step]:
    """The statements of every Python block, with the line numbers of the page."""
    for block in BLOCK.finditer(text):
        source = block[1]
        body = ast.parse(source).body
        left = expectations(source)
        for node, following in zip(body, [*body[1:], None], strict=True):
            end = following.lineno if following else len(source.splitlines()) + 1
            lines = [left.pop(line) for line in range(node.lineno, end) if line in left]
            ast.increment_lineno(node, text.count("\n", 0, block.start(1)))
            yield Step(node, "\n".join(lines) if lines else None)
        if left:
            raise DocumentationError(f"expected output before any statement: {left}")


def run(step: Step, namespace: dict[str, object], *, page: str) -> str:
    """What the statement prints, then its value unless that is None."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if isinstance(step.node, ast.Expr):
            value = eval(compile(ast.Expression(step.node.value), page, "eval"), namespace)
            if value is not None:
                print(repr(value))
        else:
            exec(compile(ast.Module([step.node], []), page, "exec"), namespace)
    return printed.getvalue()


def run_page(text: str, *, page: str) -> None:
    namespace: dict[str, object] = {"__name__": page}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for step in steps(text):
        got = run(step, namespace, page=page)
        if step.expected is not None and not doctest.OutputChecker().check_output(step.expected + "\n", got, flags):
            raise DocumentationError(f"{page}:{step.node.lineno} says {step.expected!r}, and it is {got!r}")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = read(page)
    monkeypatch.chdir(tmp_path)
    run_page(text, page=page_id(page))


def test_readme_shows_python():
    assert list(steps(read(README))), "README.md has no ```python block"


RIGHT = """
```python
a = 1
a + 1  # -> 2
print("x", a)
# -> x 1
for i in range(3):
    print(i)  # -> 0
# -> ...
# -> 2
b = "# -> 7"
```
Between.
```python
a  # -> 1
```
"""


def test_blocks_share_one_namespace_and_hold():
    run_page(RIGHT, page="right")
    assert sum(step.expected is not None for step in steps(RIGHT)) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("1 + 1  # -> 3", "page:2 says '3', and it is '2"),
        ("print(1)\n# -> 1\n# -> 2", "page:2 says '1\\\\n2'"),
        ("x = 1  # -> 1", "page:2 says '1', and it is ''"),
        ("# -> 1\nx = 1", "before any statement"),
    ],
)
def test_a_wrong_page_fails(wrong: str, message: str):
    with pytest.raises(DocumentationError, match=message):
        run_page(f"```python\n{wrong}\n```\n", page="page")


def anchors(text: str) -> set[str]:
    """The anchors GitHub makes of headings: lower case, no punctuation, hyphens, repeats numbered."""
    headings = HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    plain = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    n_before = [plain[:place].count(anchor) for place, anchor in enumerate(plain)]
    return {f"{anchor}-{n}" if n else anchor for anchor, n in zip(plain, n_before, strict=True)}


def broken_links(text: str, *, page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(CODE.sub("", text)):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        where = (page.parent / file) if file else page
        if not where.exists():
            broken.append(target)
        elif anchor and where.suffix == ".md":
            known = anchors(text if where == page else where.read_text(encoding="utf-8"))
            broken += [] if anchor in known else [target]
    return broken


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_resolve(page: Path):
    assert broken_links(read(page), page=page) == []


def test_a_broken_link_is_found():
    text = '# A `b.c` d\n[x](#a-bc-d) [y](#nowhere) [z](no.md) ![w](https://a.b/c) `[v](u)` <img src="no.png">'
    assert broken_links(text, page=ROOT / "CHANGELOG.md") == ["#nowhere", "no.md", "no.png"]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_make_targets_exist(page: Path):
    fences = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    commands = "\n".join([*fences, *re.findall(r"`(make [^`\n]+)`", read(page))])
    named = set(re.findall(r"^(?:\$ )?make ([a-z-]+)", commands, re.MULTILINE))
    assert named <= make_targets()


def test_readme_names_the_two_commands():
    text = read(README)
    assert "make demo" in text
    assert "make test" in text


def test_continuous_integration_runs_the_readme_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_experiments_page_is_up_to_date():
    records = experiments_page.stored()
    pictures = dict(experiments_page.figures(records))
    assert pictures
    for path, text in {EXPERIMENTS_PAGE: experiments_page.page(records), **pictures}.items():
        assert read(path) == text, f"{path.name} is out of date: run `python -m experiments.page`"


def test_benchmarks_page_is_up_to_date():
    assert read(BENCHMARKS_PAGE) == benchmarks_page.page(), (
        "docs/benchmarks.md is out of date: run `python -m benchmarks.page`"
    )
