# What one needs to build, try and check goodnet. `make` alone lists the targets.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Where it is set, every process would compile PyTorch's sources again: three seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench-small clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## make .venv and install goodnet with everything that the tests need

# Again only when one of the two files has changed, or when an earlier attempt did not end well.
# Python compiles what it uses at the first import; compiling everything here takes twice as long.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) \
	  and "goodnet needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## plant a backdoor, find it, remove it; the reports go to demo/
	$(BIN)/goodnet demo -o demo

test: setup ## run the tests, e.g. make test PYTEST_ARGS='-m "not slow" -x'
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-small: setup ## train 8 clean and 17 attacked models, scan them, repair up to 8 (needs ../shared)
	$(BIN)/python benchmarks/train.py --split calibration --small
	$(BIN)/python benchmarks/run.py --split calibration --small --few-repairs -o .zoo/small
	$(BIN)/python benchmarks/table.py --split calibration --results .zoo/small -o .zoo/small.md
	@echo "the tables are in .zoo/small.md"

clean: ## remove what the other targets made, except .venv
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
