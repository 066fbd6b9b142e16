"""python -m kinsight."""

from kinsight.cli import main

main()
