# Everything starts from a fresh clone: each target first sets up what it needs (tools/bootstrap).
#   VENV=dir  where the virtual environment is     PYTHON=python3.12  what to make it with
#   ARGS=...  passed on: make test ARGS="tests/core -k numa"

VENV ?= .venv
ARGS ?=
export VENV
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean set-up-demo set-up-test

help:  ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1	\2/p' Makefile

demo: set-up-demo  ## start, use, move and stop an instance, and show each step
	@$(BIN)/hv demo $(ARGS)

test: set-up-test  ## all tests (ARGS= goes to pytest)
	@$(BIN)/python -m pytest $(ARGS)

lint: set-up-test  ## format, lint and types; changes nothing
	@failed=0; for check in "ruff format --check ." "ruff check ." mypy; do \
		echo "$$check"; $(BIN)/$$check || failed=1; \
	done; exit $$failed

docs: set-up-test  ## the documentation, into docs/_build/html
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

bench: set-up-test  ## benchmarks (ARGS= goes to them)
	@$(BIN)/python -m tests.bench $(ARGS)

clean:  ## remove the virtual environment, caches and built files
	@if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

set-up-demo set-up-test: set-up-%:
	@tools/bootstrap $*
