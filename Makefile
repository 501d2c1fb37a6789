# make demo       install into .venv, train the embedded demo and compare it with its rivals
# make demo-real  the same on a real base, SmolLM2-135M, which is downloaded once (93 MB), and a chat with it at
#                 the end, until Ctrl-C; minutes (CHAT= leaves the chat out)
# make test       format, lint, types, documents, tests, in .venv-dev
# make test-slow  the tests that take minutes
# make test-architectures  every causal language model that transformers knows; takes minutes too
# make test-silos the faults and strangers of a federation over silos; takes minutes too
# make test-ray   tuning on a real Ray, of one machine and of two nodes; takes minutes too
# make docs       the documents as a site, in build/site
# make oldest-peft fetch the oldest PEFT that is allowed, for one of the slow tests
# make rehearse-gpu the trainer as if on a GPU, without one: in .venv-gpu, PyTorch's CUDA build, 5.3 GB
# make coverage   the fast tests once more, with the share of lines that they run, which must not fall
# make demo-silos a server and three sites on this machine, five rounds
# make dist       both distributions, in dist/
#
# PYTHON=python3.12      another interpreter (3.11 to 3.13), with an environment of its own (.venv-dev-3.12)
# PIP_ARGS="..."         more for pip
# TORCH=default          PyTorch as pip itself chooses it: with CUDA, on Linux. Without this, Linux without an NVIDIA
#                        GPU gets PyTorch's build for processors: 1.6 GB in all instead of 5.3

PYTHON ?= python3
PIP_ARGS ?=
# the environments of an interpreter that is named are its own, since those that are there may be another's
VERSION := $(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c \
  'import sys; print("%d.%d" % sys.version_info[:2])'))
VENV := .venv$(VERSION)
VENV_DEV := .venv-dev$(VERSION)
DEMO := $(VENV)/installed
REAL := $(VENV)/installed-real
SILOS := $(VENV)/installed-silos
DEV := $(VENV_DEV)/installed
DOCS := .venv-docs/installed
BIN := $(VENV_DEV)/bin
# /dev/dxg is a GPU in WSL
NO_GPU := $(shell [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && [ ! -e /dev/dxg ] && echo yes)
TORCH ?= $(if $(NO_GPU),cpu,default)

# the pins hold for the build backend too, which -c alone does not reach
CHAT = --chat
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# the demo and the tests use no model hub: an attempt to reach it is a fault, not a delay
OFFLINE := demo demo-real demo-silos test tests coverage test-slow test-architectures test-silos test-ray rehearse-gpu
$(OFFLINE): export HF_HUB_OFFLINE := 1
$(OFFLINE): export HF_DATASETS_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help install dev demo demo-real demo-silos dist docs test format lint types tests coverage test-slow \
  test-architectures test-silos test-ray oldest-peft rehearse-gpu

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^the /,$$d'

install: $(DEMO)
dev: $(DEV)

$(DEMO): EXTRAS := train
$(REAL): EXTRAS := train,gguf,chat
$(SILOS): EXTRAS := train,silos
$(DEV): EXTRAS := dev
$(DEMO) $(REAL) $(SILOS) $(DEV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "installing into $(@D), PyTorch's build: $(TORCH); it takes minutes and gigabytes (docs/systems.md)"
	$(PYTHON) -m venv $(@D)
	@# PyTorch alone is taken from its own index; if that cannot be reached, pip's own choice follows
	@[ "$(TORCH)" = default ] || $(@D)/bin/pip install --no-deps --retries 1 --timeout 20 -c constraints.txt \
	  --index-url https://download.pytorch.org/whl/$(TORCH) torch || \
	  echo "no PyTorch from download.pytorch.org/whl/$(TORCH); pip's own choice follows, which may be larger"
	$(@D)/bin/pip install -c constraints.txt $(PIP_ARGS) -e '.[$(EXTRAS)]'
	@touch $@

demo: $(DEMO)
	$(VENV)/bin/shepherd demo

demo-real: $(REAL)
	$(VENV)/bin/shepherd demo --base smollm2 $(CHAT)

test: format lint types docs tests

format: $(DEV)
	$(BIN)/ruff format --check .

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/deptry src

types: $(DEV)
	$(BIN)/mypy

# one process a core, each on one thread: what is tested is small, and threads would only wait for each other
PARALLEL := -n logical --maxprocesses 8 --dist worksteal
tests test-slow coverage: export OMP_NUM_THREADS := 1
tests test-slow coverage: export OMP_WAIT_POLICY := PASSIVE
# from 3.12 on Python itself counts, at much less cost
coverage: export COVERAGE_CORE = $(shell $(PYTHON) -c \
  'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
tests: $(DEV)
	$(BIN)/pytest $(PARALLEL)

# apart from `tests`, which it would make slower
coverage: $(DEV)
	$(BIN)/pytest $(PARALLEL) --cov --cov-report term:skip-covered

test-slow: $(DEV)
	$(BIN)/pytest $(PARALLEL) -m slow

test-architectures: $(DEV)
	$(BIN)/pytest -m architectures tests/model/test_architectures.py

# === leaves out local versions, such as a build for processors that lies nearer than the CUDA build
GPU := .venv-gpu$(VERSION)/installed
$(GPU): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install $(PIP_ARGS) "torch===$$(sed -n 's/^torch==//p' constraints.txt)"
	$(@D)/bin/pip install -c constraints.txt $(PIP_ARGS) -e '.[train]' hypothesis pytest
	@touch $@

rehearse-gpu: $(GPU)
	$(<D)/bin/pytest -m gpu_rehearsal tests/gpu_rehearsal

oldest-peft: $(DEV)
	PIP_CONSTRAINT= $(BIN)/pip install --quiet --no-deps --upgrade --target .oldest-peft \
	  "peft==$$(sed -n 's/.*"peft>=\(.*\)".*/\1/p' pyproject.toml).*"

# the sources are read and not imported, so the site needs neither torch nor the package
$(DOCS): docs/requirements.txt constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -c constraints.txt -r docs/requirements.txt
	@touch $@

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS)
	$(<D)/bin/mkdocs build --strict --quiet

test-silos: $(DEV)
	$(BIN)/pytest -m silos

test-ray: $(DEV)
	$(BIN)/pytest -m ray

demo-silos: $(SILOS)
	@out=runs/silos; n=1; \
	while [ -e "$$out" ] || [ -e "$$out-federation" ]; do n=$$((n + 1)); out=runs/silos-$$n; done; \
	$(VENV)/bin/shepherd silos demo examples/silos.toml output="$$out" --folder "$$out-federation"

dist: $(DEV)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist packaging/shepherd-fit
