# Two commands on a fresh machine with Python 3.11 or newer, pip and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test quick lint docs digits cifar10 experiments gpu results bench clean

demo: $(VENV)/.installed  ## install, then train, sample, measure and print the table
	$(BIN)/cmbench run --method cd --nfe 1 2
	$(BIN)/cmbench table

test: $(VENV)/.test-installed  ## everything, the slow tests included
	$(BIN)/python -m pytest -n auto --dist loadfile

quick: $(VENV)/.test-installed  ## the tests that take seconds
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

lint: $(VENV)/.dev-installed  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## the pages that are made from the code
	$(BIN)/cmbench list methods --format md > docs/methods.md

digits: $(VENV)/.installed  ## measure again what results/shipped holds for the digits: every method, three seeds
	$(BIN)/cmbench run --method all --seed 0 1 2 --out results/shipped
	$(BIN)/cmbench run --method cd pd --nfe 4 --seed 0 1 2 --out results/shipped
	$(BIN)/cmbench regenerate --out results/shipped

cifar10: $(VENV)/.installed  ## measure again the networks for CIFAR-10 that ship
	$(BIN)/cmbench run --dataset cifar10 --method cd ect ct pd ddim dpm-solver-fast edm --nfe 1 2 4 10 --out results/shipped
	$(BIN)/cmbench run --dataset cifar10 --method dpm-solver-2 deis unipc --nfe 10 --out results/shipped
	$(BIN)/cmbench run --dataset cifar10 --method edm --nfe 35 --out results/shipped
	$(BIN)/cmbench run --dataset cifar10 --method ddim --nfe 20 --out results/shipped
	$(BIN)/cmbench regenerate --out results/shipped

experiments: $(VENV)/.installed  ## measure again Figures 3 and 4 and editing on the digits, and with DATA=DIR on MNIST
	for one in fig3a fig3b fig3c fig3d fig4; do $(BIN)/cmbench experiment $$one --out results/shipped || exit 1; done
	$(BIN)/cmbench experiment editing --samples 500 --out results/shipped
	for one in "edm --nfe 35" "ddim --nfe 10" "cd --nfe 1" "cd --nfe 2"; do \
		$(BIN)/cmbench edit interpolate --method $$one --between 0 1 2 3 4 5 --out results/shipped || exit 1; done
	if [ -n "$(DATA)" ]; then for one in fig3a fig3b fig3c fig3d fig4; do \
		$(BIN)/cmbench experiment $$one --dataset mnist --data $(DATA) --out results/shipped || exit 1; done; fi
	if [ -n "$(DATA)" ]; then $(BIN)/cmbench edit measure --dataset mnist --data $(DATA) --preset mlp --images 200 \
		--nfe 1 2 5 9 17 33 --seed 0 1 2 --out results/shipped; fi
	$(BIN)/cmbench regenerate --out results/shipped

gpu: $(VENV)/.installed  ## CIFAR-10 on one GPU, make gpu DATA=DIR: teacher, CD, ECT, PD, CT, 50,000 samples each: docs/gpu.md
	$(BIN)/python scripts/gpu_cifar10.py --data $(DATA) --minutes $(or $(MINUTES),600)

results: $(VENV)/.installed  ## make every table and figure of results/shipped again, from its records alone
	$(BIN)/cmbench regenerate --out results/shipped

bench: $(VENV)/.installed  ## time the metrics against torch-fidelity and SciPy: docs/performance.md
	$(BIN)/python benchmarks/evaluation.py --images $(or $(IMAGES),1536) --blocks $(or $(BLOCKS),8)
	$(BIN)/python benchmarks/frechet.py
	$(BIN)/python benchmarks/precision_recall.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.test-installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.dev-installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(VENV)/.installed $(VENV)/.test-installed

clean:
	rm -rf $(VENV) build *.egg-info
