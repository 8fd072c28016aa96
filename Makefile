# Everything a developer does. `make` alone lists it. Needs Python 3.11 or newer and nothing else.
SHELL := /bin/bash
BIN := .venv/bin
ARGS ?=
# The first interpreter that answers and is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# uv reads its own settings, not pip's: a mirror that only pip knows is handed on.
PIP_INDEX = $(or $(PIP_INDEX_URL),$(shell $(BIN)/python -m pip config get global.index-url 2>/dev/null))
UV = $(if $(UV_DEFAULT_INDEX)$(UV_INDEX_URL),,$(if $(PIP_INDEX),UV_DEFAULT_INDEX=$(PIP_INDEX) ))$(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help setup run test check format bench faults docs lock wheel clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: .venv/.stamp  ## make .venv from requirements.lock (nothing to do when it is current)

# pip fetches the locked uv, and uv the rest, in a tenth of pip's time; where uv cannot reach the registry
# (certificates or credentials known to pip alone) pip does it all. `sync` also removes what the lock dropped.
# The project is built by the locked hatchling, so nothing unpinned is ever fetched.
.venv/.stamp: pyproject.toml requirements.lock
	@[ -n "$(PYTHON)" ] || { echo "Bedplate needs Python 3.11 or newer; none was found." >&2; exit 2; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "$(PYTHON) cannot make an environment: install python3-venv." >&2; exit 2; }
	@awk '/^[a-z]/ {on = /^uv==/} on' requirements.lock > .venv/uv.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock || \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation -e .
	@touch $@

run: setup  ## start Bedplate on 127.0.0.1:8000 (ARGS="--port 9000")
	@exec $(BIN)/bedplate up $(ARGS)

# Two processes, then what has to have the machine to itself. 5: nothing was chosen for one of the two.
# Tests with real servers, time limits and crowds can fail because the machine was busy: what failed (1) is tried once
# more by itself, and is named. What fails again has failed.
PYTEST := $(BIN)/python -m pytest -o cache_dir=.pytest_cache/make
test: setup  ## every test that this machine can run (ARGS="-k refresh")
	@beside=0; alone=0; rm -rf .pytest_cache/make; \
	$(PYTEST) -n 2 --dist worksteal -m "not alone and not faults and not bench" $(ARGS) || beside=$$?; \
	$(PYTEST) -m "alone and not faults and not bench" $(ARGS) || alone=$$?; \
	[ $$beside = 5 ] && [ $$alone != 5 ] && beside=0; [ $$alone = 5 ] && [ $$beside != 5 ] && alone=0; \
	code=$$((beside ? beside : alone)); \
	if [ $$beside -le 1 ] && [ $$alone -le 1 ] && [ $$code = 1 ]; then \
		echo "Some failed. Once more, one after the other:"; code=0; \
		$(PYTEST) -v --last-failed --last-failed-no-failures none -m "not faults and not bench" $(ARGS) || code=$$?; \
	fi; \
	exit $$code

check: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite the sources as `check` wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup  ## measure: requests a second, latency, memory
	@$(BIN)/python -m benchmarks $(ARGS)

faults: setup  ## kills, full disks and slow networks, at full size
	@$(BIN)/python -m pytest -m faults $(ARGS)

docs: setup  ## write docs/configuration.md anew
	@$(BIN)/python -c 'import pathlib; from bedplate.kernel.reference import reference; \
		pathlib.Path("docs/configuration.md").write_text(reference(), encoding="utf-8")'

lock: setup  ## resolve requirements.lock again (ARGS=--upgrade for newer versions)
	@$(UV) pip compile pyproject.toml --extra otel --extra mongodb --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet -o requirements.lock $(ARGS)

wheel: setup  ## build dist/bedplate-*.whl
	@$(BIN)/uv build --quiet --offline --wheel --no-build-isolation --python $(BIN)/python --out-dir dist

clean:  ## remove .venv, builds and caches; data stays
	@rm -rf .venv dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
