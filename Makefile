# Needs Python 3.11 or later, pip and make; everything else is installed into .venv from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo test test-quantised test-deepspeed test-matrix check

demo: .venv/.demo
	$(BIN)/python examples/demo.py --output_dir $(DEMO)

test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# bitsandbytes in an environment of its own, since peft imports it wherever it is installed.
test-quantised: .venv-quantised/.quantised
	OMP_NUM_THREADS=1 .venv-quantised/bin/python -m pytest tests/test_quantised.py

test-deepspeed: .venv-deepspeed/.deepspeed
	OMP_NUM_THREADS=1 .venv-deepspeed/bin/python -m pytest tests/test_sharding.py

# The oldest and the newest peft and transformers, each pair in an environment of its own: half an hour at first.
test-matrix:
	$(PYTHON) tests/matrix.py

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

define install
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
endef

# One stamp for each extra, renewed when the dependencies change.
.venv/.%: pyproject.toml constraints.txt
	$(install)

.venv-quantised/.%: pyproject.toml constraints.txt
	$(install)

.venv-deepspeed/.%: pyproject.toml constraints.txt
	$(install)
