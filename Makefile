# Every target sets up what it needs; only Python 3.10 or newer and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes that share the tests, a file at a time; the commands that a test starts keep to one core then.
WORKERS ?= auto

.PHONY: demo test unit test-all lint bench sbom clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## train, quantize, evaluate and report on made-up retinas
	$(BIN)/d2ed2q demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP)  ## lint, types and all tests that need no other program; lint beside the tests, which wait for disks too
	$(MAKE) --no-print-directory -j2 lint unit

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not integration"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: $(STAMP)  ## one optimizer step, the plain way against the fast one
	$(BIN)/python benchmarks/train_step.py

sbom: ## what a node installs, as CycloneDX; the same files give the same list
	rm -rf .sbom
	$(PYTHON) -m venv .sbom/node
	.sbom/node/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[serve]'
	rm -f .sbom/node/lib/python*/site-packages/d2ed2q-*.dist-info/direct_url.json
	.sbom/node/bin/python -m pip uninstall --quiet --yes setuptools pip
	$(PYTHON) -m venv .sbom/tool
	.sbom/tool/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	.sbom/tool/bin/cyclonedx-py environment --output-reproducible .sbom/node -o packaging/sbom.cdx.json
	rm -rf .sbom

clean:
	rm -rf $(VENV) build dist *.egg-info demo
