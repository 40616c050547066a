# make run    the comparison on digits           make test      lint, types and every test under ten minutes
# make lint   ruff and mypy alone                make test-all  the long tests too
# PYTHON=python3.12 make run picks another interpreter; VENV=DIR keeps its environment apart.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-all lint contract clean

run: $(STAMP)
	$(BIN)/sparsejax sweep --config configs/digits.py --out runs/digits --workers 0

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

contract: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/contract_test.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The stamp is made anew when the metadata changes, and when another interpreter is asked for.
$(STAMP): setup.cfg pyproject.toml $(if $(shell $(BIN)/python -c 'import sys; print(sys.base_prefix)' 2>/dev/null | \
    grep -xF "$$($(PYTHON) -c 'import sys; print(sys.base_prefix)')"),,other-python)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"sparsejax needs Python >= 3.11; $(PYTHON) is {sys.version.split()[0]}")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

.PHONY: other-python
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
