# The virtual environment is remade when pyproject.toml or constraints.txt change; otherwise it is reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= rankscope-demo
# Each test uses one thread; six processes at most, since each holds a torch of its own in memory.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 6 ] && echo $$n || echo 6)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-kernels test-floor lint types bench dist docs figures notebooks clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("rankscope needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	@touch $@

$(VENV)/.made-dev: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[demo]"
	@touch $@

$(VENV)/.made-docs: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs --editable .
	@touch $@

demo: $(VENV)/.made  ## Install if needed, then measure the shipped network and write a report
	$(BIN)/rankscope demo --out $(OUT)

test: $(VENV)/.made-dev  ## Install the development tools if needed, then run the whole suite with doctests
	$(PYTEST)

# What decides a rank must not hang on the last bit of a kernel.
NUMERIC := tests/spectra tests/theory tests/deficit tests/features/test_moments.py tests/features/test_feature_rank.py \
	tests/linear/test_oracle.py tests/linear/test_rules.py tests/probes/test_components.py

test-kernels: $(VENV)/.made-dev  ## Run the numeric tests again under the arithmetic of other processors
	MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Nehalem $(PYTEST) -m 'not slow' $(NUMERIC)
	OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m 'not slow' $(NUMERIC)

# The lowest versions that pyproject.toml promises, in an environment of their own.
FLOOR := .venv-floor
$(FLOOR)/.made: pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(FLOOR)/bin/python -m pip install --quiet --constraint constraints-floor.txt --group dev --editable .
	@touch $@

test-floor: $(FLOOR)/.made  ## Run the tests with the lowest versions that are promised
	$(FLOOR)/bin/python -m pytest -n $(WORKERS) --dist worksteal tests

lint: $(VENV)/.made-dev  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.made-dev  ## Measure speed and memory beside the alternatives on this machine
	$(BIN)/python benchmarks/jacobian.py

# Wheel and sdist, then both in an environment that has nothing else: the wheel as it is, the sdist through a wheel of its own.
DIST := .venv-dist
DISTPY := $(DIST)/bin/python
dist: $(VENV)/.made-dev  ## Build wheel and sdist into dist/, install them in a clean environment and try them there
	rm -rf dist $(DIST)
	$(BIN)/python -m hatchling build -t wheel -t sdist -d dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist/from-sdist dist/*.tar.gz
	$(PYTHON) -m venv $(DIST)
	$(DISTPY) -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd dist && ../$(DISTPY) ../tests/try_package.py
	$(DISTPY) -m pip install --quiet --no-deps --force-reinstall dist/from-sdist/*.whl
	cd dist && ../$(DISTPY) ../tests/try_package.py

docs: $(VENV)/.made-docs  ## Build the documentation site into site/; every warning is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -d build/doctrees docs site

figures: $(VENV)/.made  ## Run the examples at full size and put their figures into docs/images
	@for name in imagenet profile features classification deficit probe theory training; do \
		$(BIN)/python examples/$$name/run.py --out runs/example-$$name && cp runs/example-$$name/*.png docs/images/ || exit 1; \
	done

notebooks: $(VENV)/.made  ## Run the notebooks of the documentation and keep their outputs
	$(BIN)/python -W ignore docs/_ext/notebooks.py docs/notebooks/*.ipynb

clean:  ## Remove the environment and what the tools left
	rm -rf site build/doctrees dist
	rm -rf $(VENV) $(FLOOR) $(DIST) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache $(OUT)
