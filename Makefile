# What people run, and what .ci/run runs. `make` alone lists the targets.

PYTHON ?= $(shell .ci/choose-python)
UV ?= $(shell command -v uv 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
PEERS := build/peers

# $(call install,VENV,ARGUMENTS): uv where it is on PATH (3 s), else the venv's own pip (45 s); hashes are checked by both.
install = $(if $(UV),$(UV) pip install --python $(1)/bin/python $(2),$(1)/bin/python -m pip install --disable-pip-version-check $(2))

PROTOS := $(shell find protos -name '*.proto')
SERVICES := $(shell grep -l '^service' /dev/null $(PROTOS))
# $(call protoc,FOLDER): the generated code lies beside its .proto, in the protos/ of FOLDER. A .proto without a service
# gets no _grpc.py, which would hold nothing.
protoc = $(BIN)/python -m grpc_tools.protoc -I . --python_out=$(1) --pyi_out=$(1) $(PROTOS) && \
	$(BIN)/python -m grpc_tools.protoc -I . --grpc_python_out=$(1) $(SERVICES)

# The tests run without Consul too: what needs it is then printed as "not run", and fails under MESH_REQUIRE=all.
with_consul = MESH_CONSUL_BIN=$$(.ci/consul) || true; export MESH_CONSUL_BIN;

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast coverage lint format docs protos protos-check bench fuzz consul peers lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.compiled ## make .venv from requirements-dev.lock, and compile what pays (only what changed)

# Emptied first, so that .venv holds what the lock says and nothing else. The stamp comes last: a setup that was cut off
# is done again.
$(VENV)/.stamp: requirements-dev.lock
	@.ci/check-python $(PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	@$(call install,$(VENV),-q --no-deps --require-hashes -r requirements-dev.lock) || { .ci/check-compiler; exit 1; }
	@touch $@

# What pyproject.toml names for mypyc: what a request passes through, and what that is made of.
MODULES := $(shell sed -n '/^modules = /,/^]/s/^ *"\(.*\)",/\1/p' pyproject.toml)
COMPILED := hatch_build.py pyproject.toml $(wildcard proxy/http*/*.c mesh/telemetry/*.c) $(MODULES)

$(VENV)/.compiled: $(VENV)/.stamp $(COMPILED)
	@touch $@.begun # what is edited meanwhile is compiled the next time
	@$(call install,$(VENV),-q --no-deps --no-build-isolation -e .)
	@$(BIN)/python -m proxy.http1.splitter
	@mv $@.begun $@

demo: setup ## start a mesh on this machine and walk through it (CONSUL=1: with a real Consul agent)
	$(if $(CONSUL),MESH_CONSUL_BIN=$$(.ci/consul) && export MESH_CONSUL_BIN && )$(BIN)/mesh demo $(if $(CONSUL),--consul)

# Two at a time, each file by one: most tests wait more than they compute, and no two share a port or a folder.
test: setup ## the whole test suite
	@$(with_consul) $(BIN)/pytest -n 2 --dist loadfile

test-fast: setup ## the tests that start no other program: unit, property, conformance
	@$(BIN)/pytest tests/unit tests/property tests/conformance

coverage: setup ## the whole test suite, with the branches it did not take
	@mkdir -p build/coverage
	@$(with_consul) $(BIN)/pytest --cov --cov-report=term --cov-report=html:build/coverage/html

lint: setup ## ruff, formatting, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup ## let ruff format, and mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup ## write docs/configuration.md again from the code
	@$(BIN)/python -m tests.tools.configuration_page > docs/.configuration.md && mv docs/.configuration.md docs/configuration.md

protos: setup ## write the generated code again from protos/**/*.proto
	$(call protoc,.)

protos-check: setup ## does the committed generated code match the .proto files?
	@rm -rf build/protos-check && mkdir -p build/protos-check
	@$(call protoc,build/protos-check)
	@diff -r -x '*.proto' -x __init__.py -x py.typed -x __pycache__ build/protos-check/protos protos \
		|| { echo 'The generated code differs from the .proto files: run `make protos`.'; exit 1; }

bench: setup peers ## side by side with real proxies, 20 minutes at most (QUICK=1: a rough answer in 3)
	@$(with_consul) $(BIN)/python -m tests.bench $(if $(QUICK),--quick)

fuzz: setup ## the property tests with 100 times the examples (EXAMPLES=n for each test)
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/property --hypothesis-profile=fuzz --timeout=0

consul: ## a Consul agent for tests and demo; prints its path
	@.ci/consul

peers: $(PEERS)/.stamp ## Envoy and Traefik for tests and benchmarks, in build/peers

$(PEERS)/.stamp: requirements-peers.lock
	@.ci/check-python $(PYTHON)
	$(PYTHON) -m venv --clear $(PEERS)
	@$(call install,$(PEERS),-q --no-deps --require-hashes -r requirements-peers.lock)
	@touch $@

lock: ## write the lock files again from pyproject.toml (UPGRADE=1: with the newest versions)
	@.ci/lock $(PYTHON) $(if $(UPGRADE),--upgrade)

clean: ## remove what was built, .venv too
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find mesh proxy control protos tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f proxy/http*/*.so mesh/telemetry/*.so
