# `make demo` and `make test` work on a fresh machine: each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-slow lint docs clean

demo: $(VENV)/.installed
	$(BIN)/mstemba demo demo

# A process a core: the tests of one module run in one of them, in their order. What skips says why.
PYTEST = $(BIN)/python -m pytest -rs -n logical --maxprocesses 8 --dist loadscope

test: $(VENV)/.installed
	$(PYTEST)

# The whole pipeline on real video, and kills of real processes.
test-slow: $(VENV)/.installed
	$(PYTEST) -m slow --durations 10

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rewrites the option blocks in docs/ from the commands' own --help.
docs: $(VENV)/.installed
	$(BIN)/python -m tests.test_docs

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing mstemba and what it needs into $(VENV): one to a few minutes"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
