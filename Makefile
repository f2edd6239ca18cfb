# The virtual environment is remade when pyproject.toml or constraints.txt change; otherwise it is reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= rankscope-demo

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("rankscope needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.made-dev: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	@touch $@

demo: $(VENV)/.made  ## Install if needed, then measure the shipped network and write a report
	$(BIN)/rankscope demo --out $(OUT)

test: $(VENV)/.made-dev  ## Install the development tools if needed, then run the whole suite with doctests
	$(BIN)/python -m pytest

lint: $(VENV)/.made-dev  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.made-dev  ## Measure speed and memory beside the alternatives on this machine
	$(BIN)/python benchmarks/jacobian.py

clean:  ## Remove the environment and what the tools left
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache $(OUT)
