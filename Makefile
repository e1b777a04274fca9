# Every target builds what it needs. The first run creates .venv and downloads PyTorch.
#
#   make PYTHON=python3.12 test     choose the interpreter that .venv is made from
#   make test ARGS="-k plan -x"     hand arguments to pytest
#   make WORKERS=4 test             run the tests in so many processes

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
STAMPS := $(foreach extra,demo test dev,$(VENV)/.installed-$(extra))
# Each extra contains the one before it (pyproject.toml), so installing it counts for those too.
COVERS_demo := demo
COVERS_test := demo test
COVERS_dev := demo test dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pip runs in one environment do not mix.
.NOTPARALLEL:
.PHONY: help demo test check docs slow soak coverage train reproduce format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## wrap, generate, compare: the tour (examples/demo.py)
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test  ## run the tests that take seconds
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

check: $(VENV)/.installed-dev  ## everything a change must pass: format, lint, types, tests, docs
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(MAKE) --no-print-directory test
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed-dev  ## build docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

slow: $(VENV)/.installed-test  ## run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow $(ARGS)

soak: $(VENV)/.installed-test  ## four threads, one wrapped network and one pipeline; ten minutes
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10)

coverage: $(VENV)/.installed-zoo  ## judge every third-party model; writes docs/coverage.md
	$(BIN)/python -m benchmarks.coverage --page docs/coverage.md

train: $(VENV)/.installed-results  ## all exits of the reference networks anew; many hours, resumable
	$(BIN)/python -m examples.reproduction.models.train_all --workers 2 --keep
	$(BIN)/python -m examples.reproduction.models.training_page

reproduce: $(VENV)/.installed-results  ## the article's tables and figures in small; hours, resumable
	$(BIN)/python -m examples.reproduction.small --workers 2

format: $(VENV)/.installed-dev  ## rewrite the code in the house format
	-$(BIN)/python -m ruff check --fix --quiet .
	$(BIN)/python -m ruff format .

clean:  ## remove caches and build products (keeps .venv and your outputs)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist
	rm -rf docs/_build docs/api/_generated
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-zoo: requirements/zoo.txt pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c $(CONSTRAINTS) -e ".[zoo]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -c $(CONSTRAINTS) -r requirements/zoo.txt
	@touch $@

$(VENV)/.installed-results: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c $(CONSTRAINTS) -e ".[results]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "exitkit needs Python 3.11 or newer, but '$(PYTHON)' is older or missing." \
	         "Choose one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMPS): $(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing exitkit with its '$*' extra into $(VENV). The first time this takes minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c $(CONSTRAINTS) -e ".[$*]"
	@touch $(COVERS_$*:%=$(VENV)/.installed-%)
