# Needs Python 3.11 or later, pip and make; everything else is installed into .venv from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo test check

demo: .venv/.demo
	$(BIN)/python examples/demo.py --output_dir $(DEMO)

test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# One stamp for each extra, renewed when the dependencies change.
.venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
