# Two commands for a newcomer: `make quickstart` and `make test`.
PYTHON ?= python3
RECIPE ?= recipes/quickstart.toml
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# where it is set, each of some hundred processes of Ray would compile the package anew
unexport PYTHONDONTWRITEBYTECODE
UNIT   := tests/unit tests/test_architecture.py

.PHONY: help quickstart report dashboards test ray-test unit-test long-test quickstart-test nodes-test bench-test hosts-test check style types secrets serve docs audit format clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,quickstart,dev]"
	@touch $@

quickstart: $(READY)  ## set up, start a local Ray cluster, run recipes/quickstart.toml on it as a job
	$(BIN)/qzhou submit $(RECIPE)

report: $(READY)  ## write the run's report.html again and print its path
	$(BIN)/qzhou report $(RECIPE)

serve: $(READY)  ## serve the run's model at http://127.0.0.1:8000/v1/embeddings
	$(BIN)/qzhou serve $(RECIPE)

dashboards: $(READY)  ## Prometheus and Grafana on this machine, where they are installed
	$(BIN)/python deploy/dashboards/start.py

test: $(READY) style  ## format, lint, types, unit, Ray and end-to-end tests
	@$(MAKE) --no-print-directory -k -j 2 ray-test unit-test

ray-test: $(READY)
	$(BIN)/pytest --durations=25 tests/ranks tests/ray tests/e2e tests/gpu

# beside tests that start clusters, and wait much; said in one piece, so that two do not write into one line
unit-test: $(READY)
	@echo "unit tests run beside them, and are shown when they are done"
	@mkdir -p build
	@$(BIN)/pytest $(UNIT) >build/unit-test.txt 2>&1; status=$$?; cat build/unit-test.txt; exit $$status

long-test: $(READY)  ## drivers, workers and jobs that are killed at many points and go on, for minutes
	$(BIN)/pytest -m long --durations=0 tests/ray tests/e2e tests/unit

quickstart-test: $(READY)  ## the quickstart, and that it gains what the README promises
	$(BIN)/pytest -m quickstart tests/e2e/test_quickstart.py

nodes-test: $(READY)  ## pipeline and training on nodes that come, go and die, all on this machine
	$(BIN)/pytest -m nodes --durations=0 tests/ray tests/e2e

bench-test: $(READY)  ## the benchmarks at a small size, peers beside us
	$(BIN)/pytest -m bench tests/e2e/test_bench.py

hosts-test: $(READY)  ## links that are cut and slow, between hosts that are network namespaces; as root, on Linux
	$(BIN)/pytest -s -m hosts tests/e2e/test_hosts.py

check: $(READY) style  ## the fast loop: format, lint, types, a scan for secrets, unit tests
	$(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal $(UNIT) -m "not slow and not long"

style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory -j 2 -O types secrets

types: $(READY)
	$(BIN)/mypy

secrets: $(READY)
	$(BIN)/detect-secrets-hook --no-verify --exclude-lines 'api_key_env|sourceImage' $$(git ls-files)

docs: $(READY)   ## build the documentation site: build/docs/index.html
	$(BIN)/python docs/_ext/fill_pages.py
	$(BIN)/sphinx-build -q -E -W --keep-going docs build/docs
	@echo build/docs/index.html

audit: $(READY)  ## known weaknesses of the pinned dependencies; asks the package index
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove what `make` made, runs excepted
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
