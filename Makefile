PYTHON ?= python

.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint format docs quickstart clean

help:        ## Show this list
	@awk -F ': *## ' '/^[a-z-]+: *## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:     ## Install the package in place, with all development tools
	$(PYTHON) -m pip install -e ".[dev]"

test:        ## Run the tests that take seconds
	$(PYTHON) -m pytest

test-slow:   ## Run the tests that take minutes, including the notebooks
	$(PYTHON) -m pytest -m slow

lint:        ## Check style, formatting and types
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

format:      ## Fix style and formatting automatically
	$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .

docs:        ## Build the site of the documentation into site/
	$(PYTHON) -m mkdocs build --strict

quickstart:  ## Train on coloured shapes, on a CPU
	$(PYTHON) -m lit_transfusion fit --config configs/quickstart.yaml

clean:       ## Remove caches and build outputs, but not runs/
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
