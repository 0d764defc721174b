# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`. Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Files with long tests come first (tests/conftest.py), so that neither process works alone at the end.
# Bytecode is kept, whatever the environment says: each process would compile everything anew.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-rest test-all smollm2 docs pictures gpu install lint clean

quickstart: $(VENV)/.installed ## train the embedded model from its own feedback; a table before / after at the end
	$(BIN)/python -m rlif_lightning fit --config configs/quickstart.yaml

test: $(VENV)/.installed-dev lint ## style, types, and a test for every fault that is known
	$(PYTEST) -m "not full"

test-fast: $(VENV)/.installed-dev ## without the tests that take long
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m "not slow and not full"

test-all: test test-rest ## everything: what CI runs

test-rest: $(VENV)/.installed-dev ## what `make test` leaves out: every level and type of model, kills at random moments
	$(PYTEST) -m full

lint: $(VENV)/.installed-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

smollm2: $(VENV)/.installed-dev ## fetch the real model (once) and train it; about half an hour on two cores
	$(BIN)/python scripts/get_smollm2.py --out models/smollm2-135m
	$(BIN)/python -m rlif_lightning fit --config configs/smollm2_cpu.yaml

docs: $(VENV)/.installed-dev ## the documentation as a site in site/, strictly: every link must lead somewhere
	$(BIN)/mkdocs build --strict

pictures: $(VENV)/.installed-dev ## the pictures of the docs, from files in this repository
	$(BIN)/python scripts/pictures.py

gpu: $(VENV)/.installed-dev ## what to run first on a machine with a GPU; ten minutes, one page (docs/gpu.md)
	PYTHON=$(BIN)/python scripts/first_gpu.sh

install: $(VENV)/.installed ## the package alone

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

clean: ## remove the environment and what runs left behind
	rm -rf $(VENV) runs site
