# Everything a newcomer or a contributor runs. Each target makes .venv itself and is quick the second time.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test quick check format docs dist bench card peers gpu-test gpu-bench gpu-train clean

help:
	@echo "make demo    make a picture with the embedded model and say where it is"
	@echo "make test    the whole test suite (and make check)"
	@echo "make quick   the tests that aren't marked slow: under 90 seconds on two cores"
	@echo "make check   format, lint, types, layers"
	@echo "make docs    the documentation as a site, with the reference made from docstrings"
	@echo "make dist    the wheel, tried in a fresh environment without the checkout"
	@echo "make bench   the benchmarks of benchmarks/, on this machine"
	@echo "make card    the embedded model's README.md anew, from its weights, card.toml and scores.json"
	@echo "make peers   compare the metrics with torch-fidelity, clean-fid, torchmetrics… in an environment of their own"
	@echo "make gpu-test   the tests that need a GPU, with this machine's own python3 and torch: no environment, no download"
	@echo "make gpu-bench  those tests, then the speed beside diffusers eager and compiled, into GPU_JSON=; under 8 minutes"
	@echo "make gpu-train  train the embedded model within MINUTES=25 from the shards in EMOJI=, into RUN= and PARTS=; START=pocket: from it"
	@echo "PYTHON=python3.12 chooses the interpreter; PIP_ARGS is passed to pip (an index with CPU-only torch, say)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "sfumato needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing sfumato into $(VENV) (once)…"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing sfumato and its development tools into $(VENV) (once)…"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run
	@$(BIN)/sfumato generate "a red heart" "a penguin on a green background" "a detective" "flag of Sweden" \
		--out pictures --sheet
	@echo "The pictures are in $(CURDIR)/pictures"
	@echo "More: $(BIN)/sfumato generate \"a rocket\"; or, once and for all in this shell: source $(BIN)/activate"

test: check
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

quick: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache | tail -n 4

format: $(VENV)/.dev
	$(BIN)/ruff format --quiet
	$(BIN)/ruff check --quiet --fix

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet # not of ours: an advertisement of another program
	@echo "The site is in $(CURDIR)/site: open site/index.html"

# Tried where nothing of the checkout can be found: a fresh environment, another folder, no PYTHONPATH. There it makes
# pictures, runs examples/, and says what it is.
dist: $(VENV)/.dev
	rm -rf dist build/dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(PYTHON) -m venv build/dist/venv
	build/dist/venv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt dist/*.whl
	mkdir -p build/dist/work
	cp -r examples build/dist/work
	cd build/dist/work && unset PYTHONPATH && ../venv/bin/sfumato --version && ../venv/bin/sfumato generate "a red heart" --steps 10 \
		&& for script in examples/*.py; do echo "$$script"; ../venv/bin/python "$$script" || exit 1; done
	rm -rf build/dist
	@ls -sh dist

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

card: $(VENV)/.run
	@$(BIN)/sfumato card pocket --out src/sfumato/assets/pocket/README.md --overwrite

# These import torchvision, which has no build beside the CPU's torch; launch.py makes do with its names.
PEERS := tests/golden/evaluation
PEERS_VENV ?= .venv-peers

$(PEERS_VENV)/.done: $(PEERS)/requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --quiet $(PIP_ARGS) -c constraints.txt torch numpy scipy pillow requests tqdm transformers
	$(PEERS_VENV)/bin/pip install --quiet $(PIP_ARGS) --no-deps -r $(PEERS)/requirements.txt
	@touch $@

peers: $(PEERS_VENV)/.done
	$(PEERS_VENV)/bin/python $(PEERS)/launch.py $(PEERS)/record.py --check

# Nothing is installed on a machine with a GPU: its own python3 has a torch that fits.
GPU_PYTHON ?= PYTHONPATH=src python3
EMOJI ?= data/emoji
RUN ?= runs/pocket-gpu
PARTS ?= $(RUN)/parts
MINUTES ?= 25
PART_MB ?= 16

gpu-test:
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu

# diffusers is compared with where that python3 has it, or from the wheels in GPU_WHEELS=; nothing is downloaded.
GPU_JSON ?= gpu-bench.json
GPU_WHEELS ?=

gpu-bench:
	$(GPU_PYTHON) -m benchmarks.gpu --out $(GPU_JSON) $(if $(GPU_WHEELS),--wheels $(GPU_WHEELS))

# With START= (pocket, or a model's folder) that model goes on learning. Called again, it goes on. Whatever it got to,
# the newest weights are left in $(PARTS): cat them together, and untar.
gpu-train:
	-$(GPU_PYTHON) -m sfumato.cli.entry train recipe $(if $(START),pocket-gpu-again --start $(START),pocket-gpu) \
		--stage all --device cuda \
		--data $(EMOJI) --out $(RUN) --minutes $(MINUTES)
	@test -d $(RUN)/model || { echo "no model was made in $(RUN): the lines above say why"; exit 1; }
	mkdir -p $(PARTS)
	tar --create --directory $(RUN) model $(if $(START),,tokenizer) latents.json | split --bytes=$(PART_MB)MiB - $(PARTS)/model.tar.

clean:
	rm -rf $(VENV) $(PEERS_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist site
