# Everything runs in .venv, made with the machine's own python3 and pip; no compiler, no other tool is needed.
# A stamp in .venv says what was installed; a change of pyproject.toml installs again.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
MIN_PYTHON := 3.11
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check docs peers clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  ARGS="what else to pass to pytest, to the checks or to the demo"'

demo: $(VENV)/.base ## install what serving needs and run the demonstration
	$(BIN)/kea demo $(ARGS)

test: $(VENV)/.dev ## run the default tests (CPU, no network); ARGS='-m slow' for the slow ones
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import order, sizes, documents; ARGS=sizes for one of them
	$(BIN)/python -m tools.check $(ARGS)

docs: $(VENV)/.dev ## make docs/reference from the code
	$(BIN)/python -m tools.reference

peers: ## make the environments of the systems that the benchmarks compare with; ARGS=vllm for one of them
	tools/peers.sh $(ARGS)

clean: ## remove everything that was made, the environment included
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard src tests tools training) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "$(PYTHON) is not on this machine; install Python $(MIN_PYTHON) or newer, or name one: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))' || { \
	    echo "$(PYTHON) is $$($(PYTHON) -V); Kea needs Python $(MIN_PYTHON) or newer: make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu install python3-venv."; exit 1; }
	@touch $@

$(VENV)/.base: pyproject.toml $(VENV)/.python
	@echo "Installing Kea and what it needs into $(VENV) (torch is the large part; a minute or more the first time)"
	$(BIN)/python -m pip install --quiet --prefer-binary --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.base
	@echo "Installing the tools of the tests and checks into $(VENV)"
	$(BIN)/python -m pip install --quiet --prefer-binary --editable '.[dev]'
	@touch $@
