# study, test and bench install what they need into .venv first.
PYTHON ?= python3
RUN := .venv/bin/python
export JAX_PLATFORMS ?= cpu

.PHONY: study test test-slow test-all lint bench clean

study: .venv/installed
	$(RUN) -m experiments.study --config=configs/quickstart.py --workdir=runs/quickstart

test: .venv/installed-test
	$(RUN) -m pytest -n auto -m "not slow"

test-slow: .venv/installed-test
	$(RUN) -m pytest -n auto -m slow

test-all: test test-slow

lint: .venv/installed-test
	$(RUN) -m ruff check .

bench: .venv/installed-bench
	$(RUN) -m experiments.bench --out=runs/bench.json

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

.venv/installed-bench: .venv/installed
	$(RUN) -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv runs
