# Everything a user or contributor needs; each target sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small models on few cores: one thread a process, or OpenMP's barriers cost more than the arithmetic.
export OMP_NUM_THREADS ?= 1
# Compiled modules are kept, whatever the shell says: a fresh process imports Lightning in a third of the time.
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup browser demo docs lint types suite test test-min docs-tables soak bench dist clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q -p $(BIN)/python -c constraints.txt -e ".[dev,examples,packages,tasks]"
	touch $@

demo: setup
	$(BIN)/python -m examples.digits.demo

# The site, in docs/_build/html; without a network. DOCS_ONLINE=1 links types to the pages of PyTorch and Lightning.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# A headless Chromium for tests/report, where there is none; those tests are skipped where it cannot be had.
browser: setup
	$(BIN)/python -m examples.browser

# Doctests (collected from the package by pytest) and the test suite; tests/conftest.py orders it.
suite: browser
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -q

# Lint, types and the suite, side by side.
test: setup
	$(MAKE) -j 3 lint types suite

# The same suite on the lowest versions that are supported and install here.
test-min:
	test -x .venv-min/bin/python || $(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install -q uv
	.venv-min/bin/uv pip install -q -p .venv-min/bin/python -c constraints-min.txt -e ".[dev,examples]"
	.venv-min/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -q

# One cell of each documented table, made again; `make test` does it too.
docs-tables: setup
	$(BIN)/python -m examples.experiments.tables --check

# Runs of every method killed at 100 random moments; they end identical to runs left alone.
soak: setup
	SOAK_KILLS=100 $(BIN)/python -m pytest -q tests/test_contract.py tests/test_faults.py -k kill --timeout 3600

bench: setup
	$(BIN)/python -m benchmarks.run

# What is uploaded: a wheel and a source archive, checked (tests/test_package.py).
dist: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) .venv-min .mypy_cache .pytest_cache .ruff_cache build dist docs/_build docs/tutorials
