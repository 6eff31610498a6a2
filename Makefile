# Everything runs in a virtual environment of its own: `make test` works in a fresh clone.
# Other interpreter or place:  make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON := python3
VENV := .venv
LOWEST := .venv-lowest
PYTEST_ARGS :=
FUZZ_ARGS :=
MUTATION_ARGS :=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ For everybody
.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.extra-demo ## Train on real solar cells; overlays and a model go to demo/
	$(BIN)/python examples/solar_cells.py

##@ For developers
.PHONY: test
test: $(VENV)/.extra-test ## Run all tests (PYTEST_ARGS="-m 'not slow' -x" for fewer)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile $(PYTEST_ARGS)

.PHONY: faults
faults: $(VENV)/.extra-test ## Run the catalogue of what can go wrong; its summary by group
	$(BIN)/python -m pytest tests/faults --quiet $(PYTEST_ARGS)

.PHONY: coverage
coverage: $(VENV)/.extra-dev ## Run all tests and say which lines and branches none of them reaches
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage report

# The oldest releases have wheels for Python 3.10 to 3.12 only: choose one of these with PYTHON.
.PHONY: test-lowest
test-lowest: $(VENV)/.extra-dev ## Tests that are not slow, with the oldest dependencies allowed
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" --numprocesses logical --dist loadfile $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.extra-dev ## Give every reader bytes that nobody thought of (FUZZ_ARGS="--seconds 300 image")
	PYTHONPATH=tests $(BIN)/python -m fuzz.campaign $(FUZZ_ARGS)

.PHONY: mutation
mutation: $(VENV)/.extra-dev ## Change the code in small ways: which do no tests notice? (MUTATION_ARGS="--sample 50")
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py $(MUTATION_ARGS)

.PHONY: check
check: lint types imports security docs ## All that is not a test and needs no network

.PHONY: lint
lint: $(VENV)/.extra-dev ## Ruff: rules and format; vermin: the oldest Python; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin --quiet --no-tips --target=3.10- --violations defectcam

.PHONY: security
security: $(VENV)/.extra-dev ## Bandit: code that others could misuse
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive defectcam

# Not in `check`: it asks the network, and its answer changes when nothing here has.
.PHONY: audit
audit: $(VENV)/.extra-dev ## Pip-audit: known weaknesses of what is installed
	$(BIN)/pip-audit --skip-editable --desc off --progress-spinner off || \
	  { echo "make audit: see above; without a network nothing has been looked up." >&2; exit 1; }

.PHONY: format
format: $(VENV)/.extra-dev ## Ruff: sort imports, fix what is safe, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(VENV)/.extra-dev ## Mypy
	$(BIN)/mypy

.PHONY: imports
imports: $(VENV)/.extra-dev ## Import-linter: which module may know which
	$(BIN)/lint-imports

.PHONY: docs
docs: $(VENV)/.extra-dev ## Build docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html

.PHONY: hooks
hooks: $(VENV)/.extra-dev ## Check every commit from now on (pre-commit)
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## Remove what the targets above made, except the virtual environment
	rm -rf build dist demo docs/_build docs/api docs/gallery docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .fuzz .coverage mutants
	find defectcam tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: distclean
distclean: clean ## Remove the virtual environments too
	rm -rf $(VENV) $(LOWEST)

# One stamp per extra, so that repeated calls install nothing; a changed pyproject.toml does.
$(VENV)/.extra-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
