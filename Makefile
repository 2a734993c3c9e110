# Each target sets up what it needs, in .venv, and does nothing twice.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quickstart
BIN := $(VENV)/bin

.PHONY: quickstart test slow gpu check smoke results docs clean
.DEFAULT_GOAL := help

help:  ## Show what can be made.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

quickstart: $(VENV)/.quickstart  ## Train on digits, learn the inverse, sample both ways, write a report.
	$(BIN)/biflow quickstart --out $(OUT) $(if $(wildcard $(OUT)/config.yaml),--resume)

test: $(VENV)/.dev  ## Run the tests.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

slow: $(VENV)/.dev  ## Run the slow tests.
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

gpu: $(VENV)/.dev  ## Run the tests that need a GPU.
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu

check: $(VENV)/.dev  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(VENV)/.quickstart  ## The quickstart at a tiny size.
	rm -rf runs/smoke
	$(BIN)/biflow quickstart --smoke --out runs/smoke

results: $(VENV)/.quickstart  ## Render the measurements of docs/results: tables.md, figures.html.
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/report.py

docs: $(VENV)/.docs $(VENV)/.quickstart  ## Build the documentation in site/.
	$(BIN)/python benchmarks/report.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## Remove the environment and the caches, not the runs.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache site

# PyTorch first and pinned, so that nothing pulls in another build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Expected Python 3.11 or newer; set PYTHON to one: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	@touch $@

$(VENV)/.quickstart: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[quickstart]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.quickstart

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	@touch $@
