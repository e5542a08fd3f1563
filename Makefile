# make train [ARGS="model=v1 data=random"]   make test   make test-slow   make bench   make lint   make dashboard
#
# PYTHON  the interpreter that .venv is made from (3.11 or newer). One that has torch shares it: .venv then sees its
#         packages, and torch is not installed again.
# TORCH   what to install as torch otherwise, for example TORCH="torch==2.13.0 --index-url URL" for another build.
PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
ARGS ?= model=v8 data=random

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: train test test-slow lint bench dashboard

train: $(STAMP)
	$(BIN)/python -m samout_train $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python scripts/bench_overhead.py

dashboard: $(STAMP)
	$(BIN)/python -m tensorboard.main --logdir outputs --samples_per_plugin scalars=30000

$(STAMP): pyproject.toml constraints.txt
	@if $(PYTHON) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then \
		echo "$(PYTHON) has torch: sharing it"; \
		test -d .venv || $(PYTHON) -m venv --system-site-packages .venv; \
	else \
		test -d .venv || $(PYTHON) -m venv .venv; \
		$(BIN)/python -m pip install --quiet $(TORCH); \
	fi
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[dev]'
	@touch $(STAMP)
