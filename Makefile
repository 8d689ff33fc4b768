# `make run` and `make test` set up what they need. Any `python3.11` (or PYTHON=...) will do.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO_READY := .venv/.demo_ready
LORA_READY := .venv/.lora_ready
PROFILE ?=
UNTIL ?=
GPUS ?=
OUTPUTS ?=
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
DEMO_PORT ?= 7860
export PREFECT_PORT MLFLOW_PORT DEMO_PORT
# of `make wheels`; containers of Python set the first one in the environment, to their own patch release
PYTHON_VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
TORCH ?= cuda
WHEELS ?= all
WHEELS_DIR ?= wheels

.PHONY: help setup run plan dvc.yaml params.yaml test test-all test-slurm lint wheels up status down doctor demo clean
.DEFAULT_GOAL := help

help: ## show this help
	@grep -E '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):[^#]*## (.*)/\1\t\2/' | expand -t 13

setup: $(READY) ## make .venv with the pinned versions, if pyproject.toml or constraints.txt changed

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

# only who asks for the page gets its packages
$(DEMO_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]" -c constraints.txt
	@touch $@

# only who fine-tunes a judge by LoRA needs it; `pip install -e ".[lora]" -c constraints.txt` does the same
$(LORA_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[lora]" -c constraints.txt
	@touch $@

run: setup ## run what is not up to date (PROFILE=smoke for another scale, UNTIL=finetune to stop at a stage)
	$(BIN)/python -m flows.full_pipeline $(if $(PROFILE),--profile $(PROFILE)) $(if $(UNTIL),--until $(UNTIL))

plan: setup ## show memory, FLOPs, GPU-hours and disk of every stage before it is run (PROFILE=paper, GPUS=8)
	$(BIN)/python -m tasks.plan $(if $(PROFILE),--profile $(PROFILE)) $(if $(GPUS),--gpus $(GPUS))

dvc.yaml: setup ## write dvc.yaml from the table of stages, tasks/stages.py
	$(BIN)/python -m flows.dvc_yaml

params.yaml: setup ## write the comments of params.yaml from the sections' docstrings, tasks/params
	$(BIN)/python -m tasks.params.yaml_comments

test: setup ## pass the tests that need no server and no whole pipeline, in a few minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not integration"

test-all: test $(DEMO_READY) $(LORA_READY) ## pass them, then those that start servers, ranks or whole pipelines
	$(BIN)/python -m pytest -n 2 --dist loadfile -m integration

test-slurm: setup ## pass the tests that need Slurm, on one of their own (says what to install where there is none)
	$(BIN)/python tests/slurm/cluster.py
	$(BIN)/python -m pytest --timeout 3600 tests/slurm/sweeps_on_slurm.py tests/slurm/ranks_on_slurm.py

lint: setup ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# For Linux on x86_64 with glibc 2.28 or newer, which torch's wheels need. pip takes tags literally, so each is named.
FOR_TARGET = --python-version $(PYTHON_VERSION) --implementation cp --only-binary :all: \
	$(foreach glibc,28 27 26 25 24 23 22 21 20 19 18 17,--platform manylinux_2_$(glibc)_x86_64) --platform manylinux2014_x86_64
DOWNLOAD = $(PYTHON) -m pip download --quiet --dest $(WHEELS_DIR) --find-links $(WHEELS_DIR) -c constraints.txt $(FOR_TARGET)
# published as source alone: pure Python, so a wheel that is built here fits there
SOURCE_ONLY := antlr4-python3-runtime
# torch===VERSION is never a +cpu build, torch==VERSION may be one
PINNED_TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
one_of = $(if $(filter $($1),$2),,$(error $1 is "$($1)": it must be one of $2))

wheels: ## collect in wheels/ what an install without a network needs (PYTHON_VERSION=3.12, TORCH=none, WHEELS=gpu)
	$(call one_of,PYTHON_VERSION,3.11 3.12 3.13)$(call one_of,TORCH,cuda cpu none)$(call one_of,WHEELS,all gpu)
	@rm -rf build $(WHEELS_DIR)/*.whl
	@mkdir -p $(WHEELS_DIR)
ifeq ($(WHEELS),gpu)
	@$(DOWNLOAD) --no-deps -r benchmarks/gpu-requirements.txt
else
	@$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(WHEELS_DIR) -c constraints.txt . $(SOURCE_ONLY)
	@rm -rf build
ifeq ($(TORCH),cuda)
	@$(DOWNLOAD) torch===$(PINNED_TORCH)
endif
ifeq ($(TORCH),cpu)
	@$(DOWNLOAD) torch==$(PINNED_TORCH)+cpu triton || \
		{ echo "no index that pip knows has torch $(PINNED_TORCH)+cpu: name one in PIP_EXTRA_INDEX_URL" >&2; exit 1; }
endif
	@grep -vE '^(torch|triton)==' constraints.txt | $(DOWNLOAD) --no-deps -r /dev/stdin
endif
	@echo "$(WHEELS_DIR): $$(ls $(WHEELS_DIR) | wc -l) wheels, $$(du -sm $(WHEELS_DIR) | cut -f1) MB"

up: setup ## start Prefect's server, a worker and MLflow's UI (PREFECT_PORT=, MLFLOW_PORT=)
	$(BIN)/python -m flows.servers up

status: setup ## show which of them are up
	$(BIN)/python -m flows.servers status

down: setup ## stop them
	$(BIN)/python -m flows.servers down

# It works where much is broken, so it does not set up anything.
doctor: ## say in one line each what is wrong with the workspace and what to do; changes nothing
	@test -x $(BIN)/python || { echo "there is no $(BIN)/python: run make setup first" >&2; exit 1; }
	@$(BIN)/python -m flows.doctor

# It looks for a finished model first, since installing the page's packages takes most of a minute.
demo: ## show a page that draws a prompt with several models (OUTPUTS=runs/smoke, DEMO_PORT=)
	@for outputs in "$(or $(OUTPUTS),.)" "$(or $(OUTPUTS),.)"/outputs; do \
		for model in "$$outputs"/small "$$outputs"/grown "$$outputs"/*-*; do \
			case "$${model##*/}" in small|grown|scratch-*|pruned-*|finetuned-*|sft-*) \
				test ! -e "$$model/model.safetensors" || exit 0;; esac; done; done; \
	echo "$(or $(OUTPUTS),outputs) has no finished model: run make run first" >&2; exit 2
	@$(MAKE) --no-print-directory $(DEMO_READY)
	$(BIN)/python -m flows.demo $(if $(OUTPUTS),--outputs $(OUTPUTS))

clean: setup ## delete what runs have made, after a question; code, params, your pictures and .venv stay
	$(BIN)/python -m flows.clean
