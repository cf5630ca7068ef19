# Two commands: `make quickstart` trains a small M6 and shows what it can do; `make test` runs the tests.
# PYTHON chooses the interpreter (3.11 or newer); PIP_ARGS is passed to every `pip install`.
PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=

BIN     := $(VENV)/bin
# Without --no-compile pip compiles every file of PyTorch, which takes as long as the rest of the installation;
# importing once (WARM) compiles the few that are used.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --no-compile -c constraints.txt $(PIP_ARGS)
WARM    := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c

.PHONY: help quickstart test test-slow coverage wheel docs lint format clean
help:
	@echo "make quickstart   create $(VENV), train a small M6 on the embedded corpus, show what it can do"
	@echo "make test         run the tests"
	@echo "make test-slow    run the tests that take longer"
	@echo "make wheel        build the wheel, try it in a clean environment"
	@echo "make docs         build the documentation as a site, in site/"
	@echo "make lint         check style, types and the import contract"
	@echo "make format       format the code"

quickstart: $(VENV)/.quickstart
	@$(BIN)/python -m openm6 quickstart

# One process for each core, and each takes the next test when it is free.
EACH_CORE := -n logical --maxprocesses 8 --dist worksteal
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "not slow" $(EACH_CORE)

# Exit code 5 says that no test is marked slow.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow --durations 5 $(EACH_CORE) || [ $$? -eq 5 ]

# The lines that the tests of the lower folders reach; fails below the floor in pyproject.toml. Only those folders, because
# counting doubles the time of a test, and the lines of other processes (ranks, the service) are not counted.
COVERED := data modalities model tasks
coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "not slow" $(COVERED:%=tests/%) $(COVERED:%=--cov=openm6/%) --cov-report=term:skip-covered $(EACH_CORE)

wheel: $(VENV)/.dev
	$(BIN)/python .ci/wheel.py

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

# Stamps: an installation is repeated only when pyproject.toml or constraints.txt changes. Each is touched
# last, so an interrupted installation is taken up again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("OpenM6 needs Python 3.11 or newer, but $(PYTHON) is " + v + ": say make PYTHON=python3.11 ...")'
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.quickstart: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing the pinned packages ..."
	@$(INSTALL) -e '.[report]'
	@$(WARM) 'import matplotlib.pyplot, torch._dynamo, torch.utils.tensorboard'
	@touch $@

# The development set contains the quickstart set.
$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing the pinned packages for development ..."
	@$(INSTALL) -e '.[dev]'
	@$(WARM) 'import datasets, matplotlib.pyplot, torch._dynamo, torch.utils.tensorboard, transformers'
	@touch $(VENV)/.quickstart $@
