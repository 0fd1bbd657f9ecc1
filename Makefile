# `make demo` and `make test` work on a fresh machine: each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The demo needs the package alone; tests, lint and docs need the tools of developers as well.
PACKAGE = $(VENV)/.installed
TOOLS = $(VENV)/.installed-dev
# Images for containers often set it; every process would compile torch from its source again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow lint docs clean

demo: $(PACKAGE)
	$(BIN)/mstemba demo demo

# One process per core: the tests of one module run in one of them, in their order. -rs says why
# a test was skipped.
PYTEST = $(BIN)/python -m pytest -rs -n logical --maxprocesses 8 --dist loadscope

test: $(TOOLS)
	$(PYTEST)

# The whole pipeline on real video, and kills of real processes.
test-slow: $(TOOLS)
	$(PYTEST) -m slow --durations 10

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rewrites the option blocks in docs/ from the commands' own --help.
docs: $(TOOLS)
	$(BIN)/python -m tests.test_docs

# torch and torchvision come from one call of pip, which chooses a pair that fits. Bytecode is left to
# the first import: to compile every file of every package takes a third of the installation.
$(PACKAGE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing mstemba and what it needs into $(VENV): one to a few minutes"
	$(BIN)/pip install --quiet --no-compile --editable .
	touch $@

$(TOOLS): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing mstemba and the developers' tools into $(VENV): one to a few minutes"
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	touch $(PACKAGE) $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
