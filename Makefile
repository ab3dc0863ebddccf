# `make` lists what a contributor types. Needs python3 (3.11 or newer) and make; everything else goes into .venv folders.
PYTHON ?= python3
VENV ?= .venv
SHARED := ../shared
SOURCES := src tests conversion examples model_cards

.PHONY: help demo test test-slow check cards format clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

# Without compiling all of torch and transformers to bytecode: importing compiles what is used, in less time.
$(VENV)/demo: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/dev: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,test,dev]'
	touch $(VENV)/demo $@

demo: $(VENV)/demo  ## install, load an encoder, draw what it sees in a photograph
	$(VENV)/bin/python examples/visualize_features.py --output demo_output

test:  ## run what a change can break, in a fresh environment: some seven minutes on two cores, no network, no GPU
	rm -rf .venv-test
	$(MAKE) .venv-test/dev VENV=.venv-test
	$(MAKE) run-tests VENV=.venv-test

test-slow: $(VENV)/dev  ## run the rest: all six models at full size, whole recipes, every guide, Ray, a browser
	$(MAKE) run-tests VENV=$(VENV) MARKED=slow

# Two processes with one thread each: faster on two cores than one process with two threads. Files in their order: xdist
# would take those with few tests last, which are the long ones, and leave one process idle at the end.
# The common tests of transformers are fetched here, where the network is still on; the tests themselves have none.
.PHONY: run-tests
run-tests:
	if [ -d $(SHARED)/conformance ]; then $(VENV)/bin/python $(SHARED)/conformance/get_sdist.py || true; fi
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(MARKED),-m $(MARKED))

check: $(VENV)/dev  ## lint, docstrings, formatting, types, floors of the package, model cards current
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/python model_cards/generate.py --check

cards: $(VENV)/dev  ## make the model cards from their template and data
	$(VENV)/bin/python model_cards/generate.py

format: $(VENV)/dev  ## format the code
	$(VENV)/bin/ruff check --fix $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

clean:  ## remove what the other targets made
	rm -rf .venv .venv-test demo_output build src/*.egg-info
