# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each target makes .venv and installs what it needs when missing; each is safe to repeat.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
RUNS := $(VENV)/.runs
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo figures docs test test-slow lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, refit the paper's points, measure a law on this machine, report (10 to 17 min)"
	@echo "make figures    draw the figures of docs/ and run the notebooks again, from the bundled records"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make test       every test that needs no GPU and no network"
	@echo "make test-slow  the long checks as well"
	@echo "make lint       ruff check and format check, mypy"
	@echo "make clean      remove the environment and everything the commands write, except runs/"

# torch goes first and from the pin, so that no other requirement can pull a second build of it.
$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $$(grep '^torch==' constraints.txt)
	$(PIP) install --quiet -c constraints.txt -e '.[sweep]'
	@touch $@

# Tests need more than sweeps do: tools, a server of S3, Triton and its interpreter.
$(INSTALLED): $(RUNS)
	$(PIP) install --quiet -c constraints.txt -e '.[all]'
	@touch $@

figures: $(INSTALLED)
	$(BIN)/parcae plot bundled:state-reveals --law recurrence --out docs/figures/state-reveals --format png --format pdf
	$(BIN)/parcae plot bundled:many-rules --law recurrence --only isoflop --out docs/figures/many-rules
	$(BIN)/python notebooks/execute.py

docs: $(INSTALLED)
	$(BIN)/mkdocs build

demo: $(RUNS)
	$(BIN)/parcae demo

# A file's tests stay in one process, since they share what is made once; two processes, as clusters of Ray need room.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
