# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`. Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-fast smollm2 docs pictures gpu install lint clean

quickstart: $(VENV)/.installed ## train the embedded model from its own feedback; a table before / after at the end
	$(BIN)/python -m rlif_lightning fit --config configs/quickstart.yaml

test: $(VENV)/.installed-dev lint ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.installed-dev ## without the tests that take over ten seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

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
