# `make check` is what a change has to pass. PYTHON picks another interpreter than .venv's.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: check format-check lint types contracts test snapshots kernels kernels-of-each-triton cards \
	cards-of-each-triton interpreted format demo readme cli

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

# the pictures that tests of the chat compare with; look at them before they are committed
snapshots:
	DSPARK_DRAW_SNAPSHOTS=1 $(PYTHON) -m pytest -n 0 -q tests/tui/test_snapshots.py

# every Triton kernel for every card, against what the card has; needs no GPU. TRITON=3.6.0 takes another version
# than the one that is installed
TRITON ?=
kernels: $(TRITON:%=build/triton-%)
	PYTHONPATH=$(TRITON:%=build/triton-%) DSPARK_KERNELS=triton $(PYTHON) -m dspark_kernels.aot

# the engine's rounds compiled for cards that are not there; CARDS='-k 90' takes one of them
CARDS ?=
cards: $(TRITON:%=build/triton-%)
	PYTHONPATH=$(TRITON:%=build/triton-%) $(PYTHON) -m pytest -m cards tests/kernels/test_pretended_card.py $(CARDS)

kernels-of-each-triton cards-of-each-triton: %-of-each-triton:
	for version in 3.5.1 3.6.0 3.7.1 ''; do $(MAKE) $* TRITON=$$version || exit 1; done

# the tests that run kernels in Triton's interpreter, with TRITON=3.6.0 or another version below 3.9
interpreted: build/triton-$(TRITON) build/numpy-2.3.5
	PYTHONPATH=build/numpy-2.3.5:build/triton-$(TRITON) TRITON_INTERPRET=1 $(PYTHON) -m pytest -n 0 \
		-W ignore::DeprecationWarning tests/kernels/interpreted tests/engine/interpreted

# the newest that the older interpreters work with
build/numpy-2.3.5:
	$(PYTHON) -m pip install --quiet --no-deps --target $@ numpy==2.3.5

build/triton-%:
	$(PYTHON) -m pip install --quiet --no-deps --target $@ triton==$*

demo:
	$(PYTHON) -m pytest -m demo

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# the figures of README.md, from benchmarks/results
readme:
	$(PYTHON) benchmarks/readme_figures.py

# the reference of commands, from the code
cli:
	$(PYTHON) -m dspark_cli.cli_page > build-cli.md && mv build-cli.md docs/cli.md
