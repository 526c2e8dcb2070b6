# What people run. Each target works on a bare clone: it sets up what it needs first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
# What `make test` runs: folders, files or node ids, and further pytest arguments.
TESTS ?= tests/unit tests/contract tests/integration
# Integration tests that take long: whole commands, deaths, races, sweeps. `make chaos` runs them; a plain
# `make test` leaves them out, so that it stays under four minutes on two cores.
LONG := $(addprefix tests/integration/coupon/test_,$(addsuffix .py,audit_commands audit_roots expiry \
  hold_expiry recall refund_races reservation_deaths reservation_orders))
LEFT_OUT = $(if $(filter file,$(origin TESTS)),$(addprefix --ignore=,$(LONG)))
REPORT ?= build/tests.xml
PYTEST_ARGS ?=

.PHONY: help
help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Installs missing system packages (apt-get) and .venv; instant when nothing is missing.
	@tools/setup.sh

.PHONY: packages
packages:
	@tools/setup.sh --python-only

.PHONY: demo
demo: setup ## Starts the stack, tells the whole story of a coupon over HTTPS and gRPC, stops.
	@$(BIN)/meshctl demo

.PHONY: up
up: setup ## Starts the local stack and stays in front of it; Ctrl-C stops it.
	@$(BIN)/meshctl up

.PHONY: test
test: setup ## Runs unit, contract and integration tests (TESTS=tests/unit for some of them).
	@mkdir -p build && rm -f $(REPORT)
	@status=0; $(BIN)/pytest $(TESTS) $(LEFT_OUT) --junit-xml=$(REPORT) $(PYTEST_ARGS) || status=$$?; \
	  $(BIN)/python tools/test_summary.py $(REPORT) || status=$$?; exit $$status

.PHONY: chaos
chaos: ## Harms a stack under a stream of consumes, and runs the integration tests that take long.
	@$(MAKE) --no-print-directory test TESTS="tests/chaos $(LONG)" REPORT=build/chaos.xml

.PHONY: lint
lint: packages ## Checks style, types, imports, the contract, generated files and texts.
	@$(BIN)/python tools/lint.py

.PHONY: format
format: packages ## Formats Python and protos in place.
	@$(BIN)/ruff check -q --fix-only .
	@$(BIN)/ruff format -q .
	@$(BIN)/buf format -w protos

.PHONY: gen
gen: packages ## Generates gen/ and docs/reference/ from protos/.
	@$(BIN)/python tools/gen.py
	@$(BIN)/python tools/reference.py

.PHONY: baseline
baseline: packages ## Records today's contract as the one that `make lint` guards; for a release.
	@$(BIN)/python tools/breaking.py --record

.PHONY: sdk
sdk: packages ## Builds dist/couponmesh_sdk-*.whl: the stubs without the services.
	@$(BIN)/python tools/sdk.py

.PHONY: lock
lock: packages ## Pins requirements.lock from pyproject.toml (UPGRADE=1 takes the newest versions).
	@UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile -q pyproject.toml --extra stack --extra dev \
	  --universal --python-version 3.11 --generate-hashes $(if $(UPGRADE),--upgrade) -o requirements.lock

.PHONY: clean
clean: ## Removes what was built and cached; leaves .venv and the stack's data.
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
