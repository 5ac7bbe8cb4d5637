# Every target sets up what it needs in .venv: Python 3.11 to 3.13 and make are all that a machine must have.

RECIPE ?= digits
ARCH ?= alexnet
FRAMEWORK ?= torch
WORLD ?= 1
SUITE ?= growth
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock
TOGETHER := $(if $(filter-out 1,$(WORLD)),common.commands.launch --processes $(WORLD) --)
# Tests share the cores in up to four processes; one that has nothing left takes from the others.
PYTEST := $(BIN)/python -m pytest
SPREAD := -n logical --maxprocesses 4 --dist worksteal
LOCK := pyproject.toml requirements.lock

.DEFAULT_GOAL := help
.PHONY: help train-torch train-flax evaluate-torch evaluate-flax predict predict-torch predict-flax features features-torch features-flax export-torch export-flax summary weights data test test-full test-gpu parity bench bench-gpu gpu-pack gpu-run growth ablation mutants mutate study compare soak fuzz lint lock clean
.DELETE_ON_ERROR:

help:  ## list every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

train-torch: .venv/.torch  ## train RECIPE (default: digits) in PyTorch, in WORLD processes (default: 1); ARGS="--epochs 5 ..." overrides its fields
	$(BIN)/python -m $(TOGETHER) torch_impl.train $(RECIPE) $(ARGS)

train-flax: .venv/.flax  ## train RECIPE (default: digits) in Flax, in WORLD processes (default: 1); ARGS="--epochs 5 ..." overrides its fields
	$(BIN)/python -m $(TOGETHER) flax_impl.train $(RECIPE) $(ARGS)

evaluate-torch: .venv/.torch  ## score every checkpoint of RUN (a run folder), or one, in PyTorch; ARGS="--ten-crop --confusion ..."
	$(BIN)/python -m torch_impl.evaluate $(if $(RUN),"$(RUN)") $(ARGS)

evaluate-flax: .venv/.flax  ## score every checkpoint of RUN (a run folder), or one, in Flax; ARGS="--ten-crop --confusion ..."
	$(BIN)/python -m flax_impl.evaluate $(if $(RUN),"$(RUN)") $(ARGS)

predict: predict-$(FRAMEWORK)  ## name what is in IMAGE (a file or a folder), by RUN or pretrained weights, in FRAMEWORK (torch, flax)

predict-torch: .venv/.torch
	$(BIN)/python -m torch_impl.predict "$(IMAGE)" $(if $(RUN),--run "$(RUN)") $(ARGS)

predict-flax: .venv/.flax
	$(BIN)/python -m flax_impl.predict "$(IMAGE)" $(if $(RUN),--run "$(RUN)") $(ARGS)

features: features-$(FRAMEWORK)  ## write what LAYER (default: fc7) of RUN makes of the test split, or of IMAGE (a file or a folder), to a .npz, in FRAMEWORK

features-torch: .venv/.torch
	$(BIN)/python -m torch_impl.features "$(RUN)" $(if $(IMAGE),"$(IMAGE)") $(if $(LAYER),--layer $(LAYER)) $(ARGS)

features-flax: .venv/.flax
	$(BIN)/python -m flax_impl.features "$(RUN)" $(if $(IMAGE),"$(IMAGE)") $(if $(LAYER),--layer $(LAYER)) $(ARGS)

export-torch: .venv/.export  ## write RUN (a run folder, checkpoint or .safetensors) to TO=FILE.pt2, .onnx or .pt (TorchScript)
	$(BIN)/python -m torch_impl.export $(if $(RUN),"$(RUN)") $(if $(TO),"$(TO)") $(ARGS)

export-flax: $(if $(filter %.onnx,$(TO)),.venv-onnx/.done,.venv/.flax)  ## write RUN to TO=FILE.stablehlo or .onnx
	$(if $(filter %.onnx,$(TO)),.venv-onnx/bin,$(BIN))/python -m flax_impl.export $(if $(RUN),"$(RUN)") $(if $(TO),"$(TO)") $(ARGS)

summary: .venv/.torch .venv/.flax  ## print both networks of ARCH (default: alexnet) side by side: shapes and parameters
	$(BIN)/python -m parity_tests.summary $(ARCH)

weights: .venv/.torch  ## download torchvision's pretrained AlexNet and convert it for Flax
	$(BIN)/python -m torch_impl.weights

data: .venv/.torch  ## prepare DATASET (cifar10, fashion_mnist, mnist, imagenet2012) with tensorflow-datasets
	$(BIN)/python -m common.commands.data $(if $(DATASET),"$(DATASET)") $(ARGS)

test: lint .venv-onnx/.done  ## check style, types and imports, and run the tests (about 20 minutes on 2 cores)
	$(PYTEST) $(SPREAD) $(ARGS)

test-full: .venv/.test .venv-onnx/.done  ## run every test, the long ones too, and file the curves under benchmarks/results
	PARITY_RESULTS=benchmarks/results $(PYTEST) $(SPREAD) -m "not gpu" $(ARGS)

test-gpu: .venv/.test  ## run the tests that need a GPU, and file what they measure under benchmarks/results
	GPU=required PARITY_RESULTS=benchmarks/results $(PYTEST) -m gpu $(ARGS)

parity: .venv/.test  ## compare every architecture in every precision, print the table and file it
	$(BIN)/python -m parity_tests.table $(ARGS)

bench: .venv/.test  ## measure both frameworks beside plain loops on this machine's CPU, print the table and file it
	$(BIN)/python -m benchmarks.bench cpu

bench-gpu: .venv/.test  ## the same on a GPU, and the seconds to an accuracy, within nine minutes and without a network
	$(BIN)/python -m benchmarks.bench_gpu

gpu-pack: .venv/.torch  ## write .gpu-pack, all that a GPU machine without a network needs; ARGS="--python 3.13 --data cifar10"
	$(BIN)/python -m benchmarks.gpu_pack $(ARGS)

gpu-run:  ## prove and measure there, in STAGES (smoke proof bench accuracy; AGAIN=... anew), within LIMIT seconds, into RESULTS
	$(or $(PYTHON),python3) -m benchmarks.gpu_run $(if $(STAGES),--stages $(STAGES)) $(if $(AGAIN),--again $(AGAIN)) \
		$(if $(LIMIT),--limit $(LIMIT)) $(if $(RESULTS),--results "$(RESULTS)") $(if $(DEVICE),--device "$(DEVICE)") $(ARGS)

growth: .venv/.test  ## measure throughput and memory against batch and image size, and plot them; SUITE=growth-gpu on a GPU
	$(BIN)/python -m benchmarks.bench $(SUITE)
	$(BIN)/python -m benchmarks.growth $(SUITE)

ablation: .venv/.torch .venv/.flax  ## train RECIPE with one part or technique changed at a time, three seeds each, and file the table
	$(BIN)/python -m benchmarks.ablation $(RECIPE) $(ARGS)

mutants: .venv/.test  ## plant every fault, print where it is found and file the table; ARGS="--part shared" plants those in shared code alone
	$(BIN)/python -m parity_tests.mutants $(ARGS)

mutate: .venv/.test  ## change one place of FILES (default: all) at a time, expect a test to fail, go on where it stopped; ARGS="--sample 60 --seed 0"
	$(BIN)/python -m stress.mutate $(FILES) $(ARGS)

study: .venv/.study  ## write both implementations side by side as pages into site/; RECIPE=... IMAGE=...; RUN_TORCH=... RUN_FLAX=... NOISE=... add curves
	$(BIN)/python -m study --recipe $(RECIPE) $(if $(RUN_TORCH),--run-torch "$(RUN_TORCH)") $(if $(RUN_FLAX),--run-flax "$(RUN_FLAX)") \
		$(if $(NOISE),--noise "$(NOISE)") $(if $(IMAGE),--image "$(IMAGE)") $(ARGS)

compare: .venv/.study  ## train RECIPE in both frameworks from the same weights and draws, print a table and write site/ with both runs
	$(BIN)/python -m study.compare $(RECIPE) $(ARGS)

soak: .venv/.test  ## train for half an hour, killed every 20 to 60 s, in FRAMEWORK, and compare with a calm run bit for bit
	$(BIN)/python -m stress.soak $(FRAMEWORK) $(ARGS)

fuzz: .venv/.test  ## damage 10,000 files of every kind and open them: each must be refused in a sentence or be whole
	$(BIN)/python -m stress.fuzz $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy common torch_impl flax_impl parity parity_tests study stress benchmarks
	$(BIN)/lint-imports --no-cache

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --upgrade -o requirements.lock

clean:  ## remove both environments and caches; runs stay
	rm -rf .venv .venv-onnx .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info

# The first Python of 3.11 to 3.13 that runs: $(PYTHON) if given, else the usual names.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
			echo "Making .venv with $$($$python --version)"; exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "This project needs Python 3.11, 3.12 or 3.13; $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1): \
	name one with make PYTHON=/path/to/python3.12." >&2; exit 1

.venv/.torch: $(LOCK) | $(BIN)/python
	@echo "Installing PyTorch from the lock (some GB, minutes) ..."
	$(PIP) -e '.[torch]'
	@touch $@

# CUDA for JAX comes as an extra, where the driver supports one: CUDA 13 from driver 580 on, CUDA 12 from 525 on.
.venv/.flax: $(LOCK) | $(BIN)/python
	@driver=$$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d . -f 1); \
	if [ "$${driver:-0}" -ge 580 ]; then extra=,cuda13; elif [ "$${driver:-0}" -ge 525 ]; then extra=,cuda12; fi; \
	echo "Installing JAX and Flax from the lock [flax$$extra] ..."; \
	$(PIP) -e ".[flax$$extra]"
	@touch $@

.venv/.export: $(LOCK) | .venv/.torch
	$(PIP) -e '.[export]'
	@touch $@

# jax2onnx pins an older orbax than training takes: Flax's ONNX is written in an environment of its own.
.venv-onnx/.done: requirements-onnx.txt | $(BIN)/python
	@echo "Installing jax2onnx in .venv-onnx ..."
	$(BIN)/python -m venv .venv-onnx
	.venv-onnx/bin/python -m pip install -q --disable-pip-version-check -r requirements-onnx.txt
	@touch $@

.venv/.study: $(LOCK) | .venv/.torch .venv/.flax
	$(PIP) -e '.[study]'
	@touch $@

.venv/.test: $(LOCK) | .venv/.torch .venv/.flax
	$(PIP) -e '.[test]'
	@touch $@
