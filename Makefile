# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.10 or newer.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export DAGSTER_HOME ?= $(CURDIR)
PORT ?= 3000
SEED ?=
N ?= 20
# Every command and every run is a process of its own: without compiled modules each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo ui test test-all check format lock chaos bench fuzz test-ui test-graph-node test-cluster lock-cluster clean

help:
	@echo "make setup | demo | ui | test | check | test-all | chaos | bench | fuzz | test-ui | test-graph-node | test-cluster | clean"

setup: $(STAMP)

# $(call install,environment,lock file): by uv, which is installed into the environment, or by pip where uv cannot be had.
# Compiled is what each command imports: every command and every run is a process of its own. The package of version 1.0.0 owned
# the script `dagster`, which is gone when that is replaced.
HEAVY := dagster dagster_shared dagster_graphql gql graphql aiohttp clickhouse_connect pandas numpy pyarrow pydantic rich sqlalchemy
define install
@test -n "$(PYTHON)" || { echo "Python 3.10 to 3.13 with venv is needed and was not found; set PYTHON=/path/to/python3" >&2; exit 1; }
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(1)/bin/python -m ensurepip --default-pip >/dev/null
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock || true
@if test -x $(1)/bin/uv; then \
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --require-hashes -r $(2) && \
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --no-build-isolation -e . && \
	{ test -x $(1)/bin/dagster || \
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --require-hashes --reinstall-package dagster -r $(2); }; \
else \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --no-compile -r $(2) && \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && \
	{ test -x $(1)/bin/dagster || \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --force-reinstall -r $(2); }; \
fi
@$(1)/bin/python -m compileall -qq -j 0 -x '/tests?/' $(addprefix $(1)/lib/python3*/site-packages/,$(HEAVY)) payout_pipeline || true
@mkdir -p "$(DAGSTER_HOME)" && $(1)/bin/python -c "import dagster as dg; dg.DagsterInstance.get().dispose()"
@touch $@
endef

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	$(call install,$(VENV),$<)

demo: $(STAMP)
	$(BIN)/payout-pipeline demo

ui: $(STAMP)
	$(BIN)/dagster dev --host 127.0.0.1 --port $(PORT) -w workspace.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not ui and not graph_node and not cluster" -n 4 --dist loadfile

# What takes longer, after the short suite: processes, kills, faults, property tests with more examples.
test-all: test
	$(BIN)/python -m pytest -m "slow and not ui and not graph_node and not cluster" -n 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(STAMP)
	$(BIN)/python -m tools.chaos --rounds $(N) $(if $(SEED),--seed $(SEED))

fuzz: $(STAMP)
	$(BIN)/python -m tools.fuzz

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

test-ui: $(STAMP)
	tools/ui_setup.sh
	$(BIN)/python -m pytest -m ui payout_pipeline_tests/dagster_side/test_ui.py

test-graph-node: $(STAMP)
	tools/graph_node_setup.sh
	$(BIN)/python -m pytest -m graph_node payout_pipeline_tests/subgraph/test_graph_node.py

# Celery, PostgreSQL, Redis and S3 have an environment of their own: an ordinary installation does without them.
CLUSTER_VENV ?= .venv-cluster
CLUSTER_BIN := $(CLUSTER_VENV)/bin
CLUSTER_STAMP := $(CLUSTER_VENV)/.installed

$(CLUSTER_STAMP): requirements-cluster.lock pyproject.toml
	$(call install,$(CLUSTER_VENV),$<)

test-cluster: $(CLUSTER_STAMP)
	tools/cluster_setup.sh $(CLUSTER_BIN)/python
	$(CLUSTER_BIN)/python -m pytest payout_pipeline_tests/test_deploy.py payout_pipeline_tests/cluster payout_pipeline_tests/cluster/test_cluster.py

lock:
	echo "uv>=0.9" | uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header - -o requirements-uv.lock
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --no-strip-extras --extra embedded --extra dev pyproject.toml -o requirements.lock

lock-cluster:
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --extra embedded --extra dev --extra cluster --extra cluster-test pyproject.toml -o requirements-cluster.lock
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --extra cluster -c requirements-cluster.lock pyproject.toml -o deploy/requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
