# Two commands do everything, set-up included: make quickstart, make test.
# PYTHON=python3.12 chooses the interpreter for the virtual environment; any Python from 3.11 on serves.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-browser readme docs clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --retries 10 --timeout 120
export HF_HUB_OFFLINE ?= 1

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the virtual environment and install the kit with the tested versions

$(BIN)/python:
	@tools/make_venv $(VENV) $(PYTHON)

# The stamp is made again when a requirement changes, so nothing is installed twice.
$(STAMP): $(BIN)/python settings.ini setup.py pyproject.toml constraints.txt
	@echo 'Installing synseg_kit and its requirements into $(VENV) (a few minutes the first time) ...'
	@$(PIP) install --quiet --upgrade pip 'setuptools>=77' wheel
	@$(PIP) install -c constraints.txt -e '.[dev]' | { grep -v '^Requirement already satisfied' || true; } \
	  || { echo 'The tested set in constraints.txt could not be installed; trying the newest versions within bounds.'; \
	       $(PIP) install -e '.[dev]'; }
	@touch $@

quickstart: $(STAMP)  ## the whole line on the toy world: runs/quickstart/report.html
	@$(BIN)/synseg run quickstart --set small --out runs/quickstart

test: $(STAMP)  ## every test, with a time table at the end
	@$(BIN)/python tools/run_tests.py

test-browser: $(STAMP)  ## the explorer in headless Chromium and in JupyterLab; needs chromium
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo 'No Chromium was found; install it first, on Debian with: apt-get install chromium' >&2; exit 2; }
	@$(BIN)/python -m pytest -q tests/browser

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/make_readme.py

docs: $(STAMP)  ## the notebooks and the reference as a static site: _docs/index.html
	@$(BIN)/python tools/make_docs.py

clean:  ## remove what was built; the virtual environment and runs/ stay
	@rm -rf build dist _docs _proc *.egg-info .pytest_cache .ruff_cache
