# make demo       install into .venv, train the embedded demo and compare it with its rivals
# make test       format, lint, types, documents, tests, in .venv-dev
# make test-slow  the tests that take minutes
# make test-architectures  every causal language model that transformers knows; takes minutes too
# make test-silos the faults and strangers of a federation over silos; takes minutes too
# make docs       the documents as a site, in build/site
# make oldest-peft fetch the oldest PEFT that is allowed, for one of the slow tests
# make demo-silos a server and three sites on this machine, five rounds
#
# PYTHON=python3.12      another interpreter (3.11 to 3.13)
# PIP_ARGS="..."         more for pip; a machine without a GPU saves gigabytes with
#                        PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
DEMO := .venv/installed
SILOS := .venv/installed-silos
DEV := .venv-dev/installed
DOCS := .venv-docs/installed
BIN := .venv-dev/bin

# the pins hold for the build backend too, which -c alone does not reach
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# the demo and the tests use no model hub: an attempt to reach it is a fault, not a delay
demo demo-silos test test-slow test-architectures test-silos: export HF_HUB_OFFLINE := 1
demo demo-silos test test-slow test-architectures test-silos: export HF_DATASETS_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help install dev demo demo-silos test format lint types tests test-slow test-architectures test-silos \
  oldest-peft docs

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^the /,$$d'

install: $(DEMO)
dev: $(DEV)

$(DEMO): EXTRAS :=
$(SILOS): EXTRAS := [silos]
$(DEV): EXTRAS := [dev]
$(DEMO) $(SILOS) $(DEV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -c constraints.txt $(PIP_ARGS) -e '.$(EXTRAS)'
	@touch $@

# a run never goes into a folder that exists, so each demo takes the next free name
demo: $(DEMO)
	@out=runs/demo; n=1; \
	while [ -e "$$out" ]; do n=$$((n + 1)); out=runs/demo-$$n; done; \
	.venv/bin/shepherd compare examples/demo.toml output="$$out" \
	  --local client-3 --local client-6 --local client-8

test: format lint types docs tests

format: $(DEV)
	$(BIN)/ruff format --check .

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(DEV)
	$(BIN)/mypy

# one process a core, each on one thread: what is tested is small, and threads would only wait for each other
tests: export OMP_NUM_THREADS := 1
tests: export OMP_WAIT_POLICY := PASSIVE
tests: $(DEV)
	$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile

test-slow: $(DEV)
	$(BIN)/pytest -m slow

test-architectures: $(DEV)
	$(BIN)/pytest -m architectures tests/model/test_architectures.py
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

demo-silos: $(SILOS)
	@out=runs/silos; n=1; \
	while [ -e "$$out" ] || [ -e "$$out-federation" ]; do n=$$((n + 1)); out=runs/silos-$$n; done; \
	.venv/bin/shepherd silos demo examples/silos.toml output="$$out" --folder "$$out-federation"
