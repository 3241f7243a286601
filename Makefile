# `make help` says what there is. Everything a fresh machine lacks is installed here, with a word on what it is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The Python of .venv. Unless it is given, uv takes one that pyproject.toml allows, and fetches it where there is none.
PYTHON ?=
UV_VERSION := 0.13.9
UV := .make/uv/bin/uv
UV_INSTALLED := .make/uv/$(UV_VERSION)
RUN := $(UV) run --frozen --no-sync
SYNC := $(UV) sync $(if $(PYTHON),--python $(PYTHON)) --frozen --all-extras --compile-bytecode --quiet
WORKERS ?= 2
FAULTS := tests/simulation tests/faults tests/fuzz tests/api/test_bad_inputs.py tests/api/test_replicas.py tests/controlplane/test_leader.py
SAY := printf '\033[1m== %s\033[0m\n'

.PHONY: help check test test-fast faults bench demo cluster cluster-down generate format clean venv mutations

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(UV_INSTALLED):
	@$(SAY) "installing uv $(UV_VERSION) into .make/uv"
	@$(or $(PYTHON),python3) -m venv .make/uv || { \
		[ "$$(id -u)" = 0 ] || { $(SAY) "on Debian and Ubuntu this takes python3-venv, which only root can install: sudo apt-get install python3-venv"; exit 1; }; \
		$(SAY) "installing python3-venv"; apt-get update -qq && apt-get install -yqq python3-venv && $(or $(PYTHON),python3) -m venv .make/uv; }
	@.make/uv/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION) && touch $@

venv: $(UV_INSTALLED) ## Install the locked dependencies into .venv
	@$(SYNC)

check: venv ## Format, lint, types, layers, generated files
	@$(SAY) "format and lint"; $(RUN) ruff format --check . && $(RUN) ruff check .
	@$(SAY) "types"; $(RUN) mypy crds/ingestion_crds operator/ingestion_operator api/ingestion_api worker/ingestion_worker cluster/local_cluster demo/ingestion_demo bench/ingestion_bench
	@$(SAY) "layers"; $(RUN) lint-imports
	@$(SAY) "generated files"; $(RUN) python -m ingestion_crds.generate --check

generate: venv ## Write the CRD and the table of error codes from the models
	@$(RUN) python -m ingestion_crds.generate

format: venv ## Format the code
	@$(RUN) ruff check --fix . ; $(RUN) ruff format .

test: venv ## Run every test; some of them with ARGS="-k word"
	@WORKERS=$(WORKERS) tests/run $(ARGS)

test-fast: venv ## Run the tests that need no API server
	@$(RUN) pytest -n $(WORKERS) -m "not controlplane and not e2e"

faults: venv ## Inject every fault, and count what is survived (docs/reliability.md)
	@$(SAY) "programs of the test control plane (built once, then cached)"
	@$(RUN) python -m local_cluster bin etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kwok versitygw
	@$(SAY) "the campaign"; rm -f .make/faults.jsonl; outcome=0; \
	export INGESTION_FAULTS=full INGESTION_FAULTS_RESULTS="$(CURDIR)/.make/faults.jsonl"; \
	$(RUN) pytest -n $(WORKERS) --dist worksteal --durations=40 --durations-min=5 $(FAULTS) $(ARGS) || outcome=$$?; \
	$(SAY) "what was injected, and survived"; PYTHONPATH=tests $(RUN) python -m support.campaign .make/faults.jsonl || outcome=$$?; \
	exit $$outcome

bench: venv ## Measure everything beside its baseline; single ones with CASE="retry-3-of-50 requests-*"
	@$(SYNC) --group bench
	@$(SAY) "programs of the control plane (built once, then cached)"
	@$(RUN) python -m local_cluster bin etcd kube-apiserver kube-controller-manager kube-scheduler kwok versitygw
	@$(SAY) "cases and their baselines"; $(RUN) python -m ingestion_bench $(CASE) $(ARGS)

cluster: venv ## Start a local Kubernetes and print its KUBECONFIG
	@$(RUN) python -m local_cluster up

cluster-down: venv ## Stop it; images and caches stay
	@$(RUN) python -m local_cluster down

mutations: venv ## Break the operator's safeguards one by one: each time the fast tests must notice
	@$(SAY) "mutations of the operator, each in a copy"
	@time PYTHONPATH=tests $(RUN) python -m simulation.mutations $(ARGS)

demo: venv ## Ingest a real document, fail in part, retry only what failed
	@$(RUN) python -m ingestion_demo

clean: ## Stop the cluster and remove what was installed here
	@if [ -x $(UV) ]; then CLUSTER=kind $(RUN) python -m local_cluster down || true; fi
	@rm -rf .make .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
