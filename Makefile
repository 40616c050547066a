# make run       the comparison on digits              make test      lint, types, and every test but the long ones
# make lint      ruff and mypy alone                   make test-all  the long tests too
# make contract  what every method guarantees            make clean     removes what was built here
# make bench     what sparsity adds to an optimizer step, against bare optax; PEER=DIR: and against JaxPruner there
#
# FLAGS=--profile make run shows where its time goes.
# PYTHON=python3.12 make run picks another interpreter; VENV=DIR keeps its environment in a place of its own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: run test test-all lint contract bench clean

run: $(STAMP)
	$(BIN)/sparsejax sweep --config configs/digits.py --out runs/digits --workers 0 $(FLAGS)

test: lint
	$(PYTEST) -m "not long"

test-all: lint
	$(PYTEST)

contract: $(STAMP)
	$(PYTEST) tests/contract_test.py tests/methods_test.py tests/impossible_test.py

bench: $(STAMP)
	$(BIN)/python experiments/speed/optimizer.py $(if $(PEER),--peer $(PEER))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Another interpreter, or other metadata, makes the environment anew.
$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsejax needs Python >= 3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
