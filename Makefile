PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: check
check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
