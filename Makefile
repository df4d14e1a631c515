# `make check` is what a change has to pass. PYTHON picks another interpreter than .venv's.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: check format-check lint types contracts test kernels format demo readme

check: format-check lint types contracts test

format-check:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

contracts:
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as check; check()"

test:
	$(PYTHON) -m pytest

# every Triton kernel for every card, against what the card has; needs no GPU
kernels:
	DSPARK_KERNELS=triton $(PYTHON) -m dspark_kernels.aot

demo:
	$(PYTHON) -m pytest -m demo

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# the figures of README.md, from benchmarks/results
readme:
	$(PYTHON) benchmarks/readme_figures.py
