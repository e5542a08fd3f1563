# make train [ARGS="model=v1 data=random"]   make test   make test-slow   make test-nightly   make torture   make bench   make gpu   make lint   make dashboard   make docs   make docs-serve   make corpus
#
# PYTHON  the interpreter that .venv is made from (3.11 or newer). One that has torch shares it: .venv then sees its
#         packages, and torch is not installed again.
# TORCH   what pip installs as torch otherwise: a version, with options such as --index-url behind it.
PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
ARGS ?= model=v8 data=random

# The package and its tests are compiled once, not by each of the processes that import them.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: train test test-slow test-nightly torture lint bench gpu dashboard docs docs-serve corpus

train: $(STAMP)
	$(BIN)/python -m samout_train $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --durations 25

# The longest first, beside which the others run.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not nightly" -n 2 --dist loadfile --durations 25 tests/docs tests

# With flash-linear-attention, an oracle of tests/ops/test_fla.py, which says why it is skipped where that is missing.
test-nightly: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[fla]' \
		|| echo "flash-linear-attention cannot be installed: its tests are skipped"
	$(BIN)/python -m pytest -m nightly -n 2 --dist loadfile --durations 25 -rs tests/docs tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

torture: $(STAMP)
	$(BIN)/python -m tests.faults

bench: $(STAMP)
	$(BIN)/python scripts/bench_scan.py --rounds 1
	$(BIN)/python scripts/bench_train.py --rounds 2
	$(BIN)/python scripts/bench_decode.py

# On a machine with a GPU: docs/results/gpu.md. Parts that are missing in outputs/gpu; ARGS="steps kernels" for some.
gpu: ARGS =
gpu: $(STAMP)
	$(BIN)/python scripts/gpu.py $(ARGS)

dashboard: $(STAMP)
	$(BIN)/python -m tensorboard.main --logdir outputs --samples_per_plugin scalars=30000

# 120 MB of English documentation from three packages, the same bytes on every system. Without make: the same line.
corpus: $(STAMP)
	$(BIN)/python scripts/make_corpus.py

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

docs-serve: docs
	$(BIN)/mkdocs serve

# A .pth file adds the site-packages of PYTHON behind those of .venv, also where PYTHON is itself in a virtual environment.
$(STAMP): pyproject.toml constraints.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	@if $(PYTHON) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then \
		echo "sharing the torch of $(PYTHON)"; \
		$(PYTHON) -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("torch").origin).parents[1])' \
			> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared_torch.pth"; \
	else \
		$(BIN)/python -m pip install --quiet $(TORCH); \
	fi
	@grep -v -E '^(torch|triton)==' constraints.txt > .venv/constraints.txt
	@$(BIN)/python -c 'import triton' 2> /dev/null || grep '^triton==' constraints.txt >> .venv/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[dev,fast]'
	@touch $(STAMP)
