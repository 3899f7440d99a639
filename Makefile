# Needs Python (with venv) and make; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: test demo bench docs lint format clean

# One thread, and none that spins: on a small machine the threads of torch only get in each other's way.
test: export OMP_NUM_THREADS = 1
test: export OMP_WAIT_POLICY = passive
# Empty is off: what one process has compiled the others read.
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

demo: $(INSTALLED)
	$(VENV)/bin/nnunet_dvcl demo

# Memory that is given back and taken again costs time, which falls on one side of a ratio or on the other by chance.
bench: export MALLOC_MMAP_THRESHOLD_ = 4294967296
bench: export MALLOC_TRIM_THRESHOLD_ = 4294967296
# make bench BENCH="--device cuda --sizes hippocampus flare"
bench: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks $(BENCH)

# The tables that say what the trainers are.
docs: $(INSTALLED)
	$(VENV)/bin/python docs/generate.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Editable: a changed source file needs no new install. Not compiled: most of torch is never imported, and takes a minute.
$(INSTALLED): setup.py pyproject.toml nnunet_dvcl/nnunet_dvcl.pth
	@echo "Installing into $(VENV), once: about 3 minutes, 6 GB"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile -e '.[test]'
	touch $@

# Only what this file made under its own names: a $(VENV) from elsewhere stays.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
