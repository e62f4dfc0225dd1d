# Commands for development and CI. `make` alone lists the targets.
# The environment is in .venv and is reinstalled only when the pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with the pinned versions

# The stamp is written last, so the next make repeats an interrupted installation.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
		echo "'$(PYTHON)' is not Python 3.11, 3.12 or 3.13;" \
			"choose another: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV), which takes some minutes ..."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## train, evaluate, register and predict on generated shapes, into demo/
	$(BIN)/python -m jobs.demo --out demo

test: $(INSTALLED) ## run the unit tests
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Excluded: the interleaving helper, the competitors, and the script that writes the data.
bench: $(INSTALLED) ## run every benchmark in benchmarks/
	@set -e; for name in $(filter-out accuracy assigners interleave scale_elastic training_options %_curves %_rival %_rivals %_set,$(basename $(notdir $(sort $(wildcard benchmarks/*.py))))); do \
		echo "== $$name"; $(BIN)/python -m "benchmarks.$$name"; done

clean: ## delete caches and the demo's output; data, runs and .venv stay
	rm -rf demo .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build
	find model pipeline jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
