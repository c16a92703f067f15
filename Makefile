# make demo                the whole pipeline in minutes, on drawn cracks
# make demo DATA=folder    the same on your images/ and masks/
# make test                the tests; make test-all adds the slow ones (real kills, several processes)
# make test-thorough       before a release: every network deployed, every strategy, compiled runs; make lint
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= demo

# processes that tests start read what others have compiled of this project, wherever the environment forbids to keep it
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-all test-thorough lint clean

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh "$(OUT)" "$(DATA)"

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not thorough" -n 2 --dist loadfile

test-thorough: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m thorough -n 2 --dist loadfile

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cssr needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python setup.cfg constraints.txt
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[smp,tensorboard]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
