# What a person types. `make` alone lists the targets.

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-slow ui serve repro bench docs release clean

BIN := .venv/bin
PIP := -m pip -qq --disable-pip-version-check --no-input
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v $$python && break; done)

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.installed .venv/bin/dvc  ## Build .venv and .venv-dvc from the pinned files; nothing when they are current

demo: setup  ## Synthetic log to comparison through Dagster: a few minutes on two cores, no network
	@DAGSTER_HOME="$${DAGSTER_HOME:-$(CURDIR)}" $(BIN)/python -m dti_pipeline.defs.demo

# One thread a process, and no processes that compile: two test processes share two cores. A file's tests stay in one process, since
# they share fixtures; files start in the order of pyproject.toml's testpaths.
PYTEST := OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup  ## Style, types, dvc.yaml, imports and the fast unit tests: under a minute
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m dti_pipeline.dvc --check
	@$(PYTEST) -m "not slow and not long" tests/code $(ARGS)

test: setup  ## Every test, two files at a time; ARGS="-k packing" passes arguments to pytest
	@$(PYTEST) $(ARGS)

test-slow: setup  ## What takes minutes and `make test` leaves out: stages killed and files damaged at large
	@$(PYTEST) -m long --timeout 3600 $(ARGS)

ui: setup  ## Dagster and MLflow in the browser, together; Ctrl-C stops both
	@$(BIN)/python -m dti_pipeline.ui

serve: setup  ## The champion behind HTTP at http://127.0.0.1:8000; ARGS="--paradigm dti" passes arguments
	@$(BIN)/dti serve $(ARGS)

repro: setup  ## The same pipeline through DVC: only what changed is run
	@$(BIN)/dvc repro

bench: setup  ## Measure on this machine; each script prints a table of docs/benchmark.md
	@for name in loader packing data_stages evaluation serving service train_step_cpu orchestration float8_quality \
		plan_memory cluster growing; do \
		$(BIN)/python -m benchmarks.$$name || exit 1; done

docs: setup  ## The site, into reports/site: tutorial, how-to, method, results, reference; no network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "reports/site/index.html"

release: setup .venv-release/.pinned  ## Wheel and sdist in dist/, checked, with the bill of materials; nothing is sent
	@rm -rf dist
	@.venv-release/bin/python -m build --no-isolation --outdir dist . >/dev/null
	@.venv-release/bin/python -m twine check --strict dist/*.whl dist/*.tar.gz
	@.venv-release/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.cdx.json $(BIN)/python
	@ls -l dist

clean:  ## Remove what the stages made here; raw logs, run records and environments stay
	@test ! -x $(BIN)/dti || DTI_HOME="$(CURDIR)" $(BIN)/dti clean
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Environments. A stamp is younger than the file it was built from exactly when the environment is current.

.venv/.pinned: requirements/project.txt
	@test -n "$(PYTHON)" || { echo "make setup needs Python 3.11 or newer with venv (Debian: apt install python3 python3-venv);" \
		"name one with PYTHON=/path/to/python"; exit 1; }
	@echo "Building .venv from requirements/project.txt: a minute or two, about 2 GB"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP) install -r requirements/project.txt
	@touch $@

.venv/.installed: .venv/.pinned pyproject.toml
	@$(BIN)/python $(PIP) install --no-deps -e .
	@touch $@

.venv-dvc/.pinned: requirements/dvc.txt .venv/.pinned
	@echo "Building .venv-dvc from requirements/dvc.txt"
	@test -x .venv-dvc/bin/python || $(BIN)/python -m venv .venv-dvc
	@.venv-dvc/bin/python $(PIP) install -r requirements/dvc.txt
	@touch $@

.venv-release/.pinned: requirements/release.txt .venv/.pinned
	@echo "Building .venv-release from requirements/release.txt"
	@test -x .venv-release/bin/python || $(BIN)/python -m venv .venv-release
	@.venv-release/bin/python $(PIP) install -r requirements/release.txt
	@touch $@

.venv/bin/dvc: requirements/dvc-wrapper.sh .venv-dvc/.pinned
	@install -m 755 $< $@
