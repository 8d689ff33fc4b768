# `make run` and `make test` set up what they need. Any `python3.11` (or PYTHON=...) will do.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PROFILE ?=
GPUS ?=
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
export PREFECT_PORT MLFLOW_PORT

.PHONY: help setup run plan test test-slurm lint up status down
.DEFAULT_GOAL := help

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/' | expand -t 12

setup: $(READY) ## make .venv with the pinned versions, if pyproject.toml or constraints.txt changed

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

run: setup ## run what is not up to date (PROFILE=smoke for another scale)
	$(BIN)/python -m flows.full_pipeline $(if $(PROFILE),--profile $(PROFILE))

plan: setup ## show memory, FLOPs, GPU-hours and disk of every stage before it is run (PROFILE=paper, GPUS=8)
	$(BIN)/python -m tasks.plan $(if $(PROFILE),--profile $(PROFILE)) $(if $(GPUS),--gpus $(GPUS))

test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slurm: setup ## pass the tests that need Slurm, on one of their own (says what to install where there is none)
	$(BIN)/python tests/slurm/cluster.py
	$(BIN)/python -m pytest --timeout 1200 tests/slurm/sweeps_on_slurm.py tests/slurm/ranks_on_slurm.py

lint: setup ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

up: setup ## start Prefect's server, a worker and MLflow's UI (PREFECT_PORT=, MLFLOW_PORT=)
	$(BIN)/python -m flows.servers up

status: setup ## show which of them are up
	$(BIN)/python -m flows.servers status

down: setup ## stop them
	$(BIN)/python -m flows.servers down
