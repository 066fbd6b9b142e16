"""The command line: parse, call one library function, print.

Results go to stdout: a table in a terminal, tab-separated lines in a pipe, one JSON document with --json. Progress and
warnings go to stderr. Exit status: 0 done, 1 findings with --fail-on, 2 usage, data or configuration, 130 interrupted.

A verb is one file here, registered below; options that verbs share are declared in `options.py`. torch is imported
inside the verbs only: --help does not wait for it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from kinsight.cli.compare import print_comparison
from kinsight.cli.denoise import print_denoising
from kinsight.cli.density import print_density
from kinsight.cli.export import write_export
from kinsight.cli.fit import print_fit
from kinsight.cli.index import make_index
from kinsight.cli.info import print_info
from kinsight.cli.labels import print_labels
from kinsight.cli.neighbors import print_neighbors
from kinsight.cli.options import flag, with_options
from kinsight.cli.plan import print_plan
from kinsight.cli.printing import show_error, show_warning
from kinsight.cli.report import make_report
from kinsight.cli.uncertainty import print_uncertainty
from kinsight.cli.verify import print_damage
from kinsight.errors import KinsightWarning

app = typer.Typer(
    name="kinsight",
    help="See your data as your network sees it: similarity, neighbors, density, label suspects.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(with_options(print_plan))
app.command("index")(with_options(make_index))
app.command("neighbors")(with_options(print_neighbors))
app.command("density")(with_options(print_density))
app.command("labels")(with_options(print_labels))
app.command("fit")(with_options(print_fit))
app.command("uncertainty")(with_options(print_uncertainty))
app.command("denoise")(with_options(print_denoising))
app.command("compare")(with_options(print_comparison))
app.command("report")(with_options(make_report))
app.command("info")(print_info)
app.command("export")(write_export)
app.command("verify")(print_damage)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, flag("--version", help="Print the version.")] = False) -> None:
    """See your data as your network sees it: similarity, neighbors, density, label suspects."""
    if version:
        from importlib import metadata

        try:
            print(f"kinsight {metadata.version('kinsight')}")
        except metadata.PackageNotFoundError:
            print("kinsight, run from a folder it is not installed from")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; an error is one line on stderr, with --debug its traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, "")  # factories of the current folder can be named
    with warnings.catch_warnings():
        warnings.simplefilter("always", KinsightWarning)
        warnings.showwarning = show_warning  # catch_warnings puts the old one back
        try:
            status = app(given or ["--help"], prog_name="kinsight", standalone_mode=False) or (0 if given else 2)
        except (typer.Abort, KeyboardInterrupt):
            status = 130
        except Exception as error:
            if "--debug" in given and not hasattr(error, "format_message"):  # which is one of usage
                raise
            show_error(error)
            status = 2
    if status == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(status)
