MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test check docs setup clean

python := .venv/bin/python

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-12s %s\n' "$$target" "$$text"; done

demo: setup  ## train a small network on MNIST and ask it which images it finds similar
	$(python) demo/run.py

test: check  ## every check, then every test, doctest and README example
	$(python) -m pytest -n logical

check: setup  ## ruff and mypy
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

docs: setup  ## write docs/api.md anew from the docstrings
	$(python) scripts/api_page.py

setup:  ## make .venv, unless it is there and up to date (the other targets do this)
	@bash scripts/setup.sh

clean:  ## remove .venv, caches and what the demo wrote
	rm -rf .venv build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
