# Everything here sets itself up: the only needs are Python >= 3.11 and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# One thread per test process: two processes on two cores beat one process on both.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=10 --durations-min=4
INSTALL := $(BIN)/python -m pip install --quiet -e '.[dev]'

.PHONY: demo test test-slow test-kernels gate test-app test-everywhere constraints fuzz test-faults lint format bench gpu docs picture docs-figures wheel clean
.DEFAULT_GOAL := demo

.venv/stamp: setup.py pyproject.toml constraints.txt tests/readers.txt
	@$(PYTHON) -c 'import sys; sys.exit("s2clip needs Python >= 3.11, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo 'setting up .venv: PyTorch and its CUDA libraries are about 3 GB, once'
	$(PYTHON) -m venv .venv
	$(INSTALL) -c constraints.txt || { \
	  echo 'constraints.txt cannot be met here: pip says above what is missing (often a cap on torch in its own configuration).'; \
	  echo "Installing by the ranges of setup.py instead: tested at both of their ends, not at what pip chooses now."; \
	  $(INSTALL); }
	$(BIN)/python -m pip install --quiet --no-deps -r tests/readers.txt
	@touch $@

demo: .venv/stamp
	$(BIN)/s2clip demo

test: .venv/stamp
	$(PYTEST)
	$(PYTEST) tests/kernels

test-slow: .venv/stamp
	$(BIN)/pytest -m slow
	$(BIN)/pytest -m slow tests/kernels

test-kernels: .venv/stamp
	$(PYTEST) tests/kernels

gate: .venv/stamp  # every kernel for every GPU, compiled by the oldest and the newest Triton that torch comes with
	$(BIN)/python -m s2clip.kernels.inspect --quiet --triton 3.6 3.9

test-app: .venv/stamp  # needs the system's packages chromium and chromium-driver
	$(BIN)/pytest tests/app

test-everywhere: .venv/stamp  # other processors and versions, hours; ROWS=cheap takes what CI does, ROWS=list says what there is
	$(BIN)/python tools/everywhere.py $(ROWS)

constraints: .venv/stamp  # the newest versions, into constraints.txt
	$(BIN)/python tools/constraints.py

fuzz: .venv/stamp  # make fuzz MUTATIONS=100000 SEED=0: damaged files against the readers; seconds of it are in make test
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz_run.py --mutations $(or $(MUTATIONS),100000) --seed $(or $(SEED),0)

test-faults: .venv/stamp  # TRIALS=60 SEED=0: what ends amid a run on Ray, at random moments; an hour on two busy cores
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults_run.py --trials $(or $(TRIALS),50) --seed $(or $(SEED),0)

lint: .venv/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/import_contracts.py
	$(BIN)/mypy

format: .venv/stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/stamp
	$(BIN)/pytest bench --benchmark-only

gpu: .venv/stamp
	PYTHON=$(CURDIR)/$(BIN)/python tests/gpu/run

docs: .venv/stamp  # docs/ops.md, from the docstrings
	$(BIN)/python tools/ops_reference.py

picture: .venv/stamp  # the README's and docs/refinement.md's, after the weights or the demo have changed
	$(BIN)/s2clip demo -o out/picture
	mkdir -p docs/images
	cp out/picture/*.input.png docs/images/scene.png
	cp out/picture/*.coarse.png docs/images/coarse.png
	cp out/picture/*.overlay.png docs/images/demo.png
	$(BIN)/python tools/refinement_figure.py

docs-figures: .venv/stamp  # docs/analysis.md: its figures and its tables, after weights or methods have changed
	$(BIN)/python tools/docs_figures.py

wheel: .venv/stamp
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv build dist out *.egg-info
