# Each target sets up what it needs: a virtual environment in .venv with every pin of requirements.lock.
# The environment is made again only when the lock or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_ARGS ?=

# The lock constrains build environments too (newer pip reads the second name for those).
export PIP_CONSTRAINT := requirements.lock
export PIP_BUILD_CONSTRAINT := requirements.lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install serve test lint format bench loadtest demo-weights clean

help:
	@echo "make serve         answer questions on http://127.0.0.1:8000 (settings: MADTP_...=... make serve)"
	@echo "make test          run the tests"
	@echo "make lint          ruff, and mypy --strict"
	@echo "make format        let ruff put the code in form"
	@echo "make bench         time full-size BLIP-base, dense and pruned (BENCH_ARGS=... for options)"
	@echo "make loadtest      two minutes of load on make serve, or on a service it starts; report in runs/loadtests"
	@echo "make demo-weights  train the committed demo checkpoints again"
	@echo "make install       only set up .venv"
	@echo "make clean         remove .venv and the tools' caches"

install: $(READY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not that: try  make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(READY): requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

serve: $(READY)
	$(BIN)/madtp-serve

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict madtp_core service loadtests deploy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/madtp bench encoder $(BENCH_ARGS)

loadtest: $(READY)
	$(BIN)/python -m loadtests run loadtests/scenarios/two_minutes.yaml

demo-weights: $(READY)
	$(BIN)/madtp demo-weights

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find madtp_core service loadtests tests -type d -name __pycache__ -prune -exec rm -rf {} +
