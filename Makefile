# Everything runs in a virtual environment of its own: `make test` works in a fresh clone.
# Other interpreter or place:  make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON := python3
VENV := .venv
PYTEST_ARGS :=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ For everybody
.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.extra-demo ## Train on real solar cells; overlays and a model go to demo/
	$(BIN)/python examples/solar_cells.py

##@ For developers
.PHONY: test
test: $(VENV)/.extra-test ## Run all tests (PYTEST_ARGS="-m 'not slow' -x" for fewer)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: faults
faults: $(VENV)/.extra-test ## Run the catalogue of what can go wrong; its summary by group
	$(BIN)/python -m pytest tests/faults --quiet $(PYTEST_ARGS)

.PHONY: check
check: lint types imports docs ## All that is not a test: lint, types, imports and docs

.PHONY: lint
lint: $(VENV)/.extra-dev ## Ruff: rules and format, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
	rm -rf build dist demo docs/_build docs/api docs/gallery docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find defectcam tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: distclean
distclean: clean ## Remove the virtual environment too
	rm -rf $(VENV)

# One stamp per extra, so that repeated calls install nothing; a changed pyproject.toml does.
$(VENV)/.extra-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
