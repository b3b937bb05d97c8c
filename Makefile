# make demo   set up and show the main job        make check  lint, types, import rules, generated files
# make test   set up and run all tests            make bench  measure (minutes; prints figures)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

# One BLAS thread a process: workers and tests share the cores.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-fast check fix bench crds clean

help:
	@sed -n 's/^# //p' $(MAKEFILE_LIST) | head -2

setup: $(VENV)/.core

$(VENV)/.core: pyproject.toml tools/make_venv.py
	@echo "Setting up $(VENV) (once, about half a minute) …"
	@$(PYTHON) tools/make_venv.py $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Adding the tools of development …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

demo: $(VENV)/.core
	@$(BIN)/spinney demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not e2e and not kubectl"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m spinney.api.crd --check

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crds: $(VENV)/.core
	$(BIN)/python -m spinney.api.crd

bench: $(VENV)/.dev
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
