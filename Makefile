.PHONY: setup run test test-slow test-all check

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# No telemetry from the processes that are started here.
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export MLFLOW_DISABLE_TELEMETRY = true
export HF_HUB_DISABLE_TELEMETRY = 1
# Byte code is written to .venv at the first import; without it every process would compile PyTorch's modules again.
unexport PYTHONDONTWRITEBYTECODE

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt .ci/install
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python .ci/install
	touch $@

run: setup  ## adapt the default model to the default benchmark
	dsm run

# A tiny model gains nothing from a second core. Tests that share a fixture of a file run in one worker (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder --durations=30

test: setup  ## run after a change: each promise once
	$(PYTEST) -m "not slow"

test-slow: setup  ## the rest: thirty kills at random moments, cron, every store, properties on many random examples
	HYPOTHESIS_PROFILE=many $(PYTEST) -m "slow or hypothesis"

test-all: setup  ## everything, in one run
	HYPOTHESIS_PROFILE=many $(PYTEST)

check: setup  ## lint, format, types, architecture
	ruff check
	ruff format --check
	mypy
	lint-imports
