# Every target sets up what it needs in .venv: Python 3.11 to 3.13 and make are all that a machine must have.

# As people write them.
NAMED.torch := torch Torch TORCH pytorch PyTorch Pytorch PYTORCH
NAMED.flax := flax Flax FLAX jax Jax JAX linen
RECIPE ?= digits
ARCH ?= alexnet
WORLD ?= 1
SUITE ?= growth
ARGS ?=
FRAMEWORK ?= torch
GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
ifneq ($(filter resume,$(MAKECMDGOALS)),)
ifeq ($(origin FRAMEWORK),file)
FRAMEWORK := $(shell sed -n 's/^ *"framework": *"\([a-z]*\)".*/\1/p' "$(RUN)/manifest.json" 2>/dev/null)
endif
endif
TYPED := $(FRAMEWORK)
override FRAMEWORK := $(strip $(foreach name,torch flax,$(if $(filter $(TYPED),$(NAMED.$(name))),$(name))))

# What the command line says besides the recipe, in the words of the commands.
OWN = $(if $(RECIPE_FILE),--recipe-file "$(RECIPE_FILE)")
ON = $(if $(DEVICE),--device "$(DEVICE)")
TRAINED = $(if $(and $(RECIPE_FILE),$(filter file,$(origin RECIPE))),,$(RECIPE)) $(OWN)
FED = $(if $(DATASET),--dataset "$(DATASET)") $(if $(BATCH),--batch-size "$(BATCH)") $(if $(SEED),--seed "$(SEED)") $(ON)
FIELDS = $(if $(EPOCHS),--epochs "$(EPOCHS)") $(if $(LR),--optimizer.lr "$(LR)") $(if $(OUT),--out "$(OUT)") $(FED) \
	$(if $(LOG),--log $(LOG))

BIN := .venv/bin
# pip's errors alone; while it works, a line every half minute says that it does.
PIP := -m pip install -qq --disable-pip-version-check
BEAT := (seconds=0; while sleep 1 && kill -0 $$$$ 2>/dev/null; do seconds=$$((seconds + 1)); \
	[ $$((seconds % 30)) -ne 0 ] || echo "... still installing, after $$seconds s"; done) & trap "kill $$! 2>/dev/null" EXIT;
INSTALL := $(BEAT) $(BIN)/python $(PIP) -c requirements.lock
TOGETHER := $(if $(filter-out 1,$(WORLD)),common.commands.launch --processes $(WORLD) --)
# Tests share the cores in up to four processes; one that has nothing left takes from the others.
PYTEST := $(BIN)/python -m pytest
SPREAD := -n logical --maxprocesses 4 --dist worksteal
ANY := $(or $(firstword $(wildcard .venv/.torch .venv/.flax)),.venv/.torch)
LOCK := pyproject.toml requirements.lock

.DEFAULT_GOAL := help
TARGETS := help train-torch train-flax resume resume-torch resume-flax compare ablation find-lr find-lr-torch \
	find-lr-flax runs plot photos photos-torch photos-flax evaluate-torch evaluate-flax predict predict-torch predict-flax features features-torch features-flax export-torch export-flax summary \
	study break notebook weights data parity mutants mutate soak fuzz results results-table results-check bench bench-gpu growth gpu-pack gpu-run check test test-full test-gpu lint \
	lock clean
.PHONY: $(TARGETS)
.DELETE_ON_ERROR:

## Train (RECIPE_FILE=mine.py brings recipes and networks of your own)

train-torch: .venv/.torch $(LOG:%=.venv/.%)  ## train RECIPE (default: digits) in PyTorch; DATASET, EPOCHS, BATCH, LR, SEED, DEVICE, OUT, LOG (tensorboard, wandb), WORLD (processes), ARGS="--FIELD VALUE ..."
	$(BIN)/python -m $(TOGETHER) torch_impl.train $(TRAINED) $(FIELDS) $(ARGS)

train-flax: .venv/.flax $(LOG:%=.venv/.%)  ## train RECIPE (default: digits) in Flax; DATASET, EPOCHS, BATCH, LR, SEED, DEVICE, OUT, LOG (tensorboard, wandb), WORLD (processes), ARGS="--FIELD VALUE ..."
	$(BIN)/python -m $(TOGETHER) flax_impl.train $(TRAINED) $(FIELDS) $(ARGS)

resume: resume-$(FRAMEWORK)  ## go on with RUN where it stopped, in the framework that it began in; ARGS="--epochs 20 ..."

resume-torch: .venv/.torch
	$(BIN)/python -m $(TOGETHER) torch_impl.train --resume "$(RUN)" $(OWN) $(ARGS)

resume-flax: .venv/.flax
	$(BIN)/python -m $(TOGETHER) flax_impl.train --resume "$(RUN)" $(OWN) $(ARGS)

compare: .venv/.study  ## train RECIPE in both frameworks from the same weights and draws, for EPOCHS, print a table and write site/ with both runs
	$(BIN)/python -m study.compare $(TRAINED) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ON) $(ARGS)

find-lr: find-lr-$(FRAMEWORK)  ## take steps of RECIPE at growing learning rates, in FRAMEWORK, draw the loss and suggest a rate; DATASET, BATCH, TO=FILE.png

find-lr-torch: .venv/.torch
	$(BIN)/python -m torch_impl.find_lr $(TRAINED) $(FED) $(if $(TO),--to "$(TO)") $(ARGS)

find-lr-flax: .venv/.flax
	$(BIN)/python -m flax_impl.find_lr $(TRAINED) $(FED) $(if $(TO),--to "$(TO)") $(ARGS)

ablation: .venv/.torch .venv/.flax  ## train RECIPE with one part or technique changed at a time, three seeds each, and file the table
	$(BIN)/python -m benchmarks.ablation $(TRAINED) $(ARGS)

## Look at runs and networks

runs: $(ANY)  ## list the runs in FOLDER (default: runs), newest first: recipe, epochs, best score, seconds, size
	$(BIN)/python -m common.commands.runs $(if $(FOLDER),"$(FOLDER)") $(ARGS)

plot: $(ANY)  ## draw loss and accuracy of RUNS="a b ..." into one picture, TO (default: curves.png)
	$(BIN)/python -m common.commands.plot $(RUNS) $(if $(TO),--to "$(TO)") $(ARGS)

evaluate-torch: .venv/.torch  ## score every checkpoint of RUN (a run folder), or one, in PyTorch; ARGS="--ten-crop --confusion ..."
	$(BIN)/python -m torch_impl.evaluate $(if $(RUN),"$(RUN)") $(OWN) $(ON) $(ARGS)

evaluate-flax: .venv/.flax  ## score every checkpoint of RUN (a run folder), or one, in Flax; ARGS="--ten-crop --confusion ..."
	$(BIN)/python -m flax_impl.evaluate $(if $(RUN),"$(RUN)") $(OWN) $(ON) $(ARGS)

features: features-$(FRAMEWORK)  ## write what LAYER (default: fc7) of RUN makes of the test split, or of IMAGE (a file or a folder), to a .npz, in FRAMEWORK

features-torch: .venv/.torch
	$(BIN)/python -m torch_impl.features "$(RUN)" $(if $(IMAGE),"$(IMAGE)") $(if $(LAYER),--layer $(LAYER)) $(OWN) $(ON) $(ARGS)

features-flax: .venv/.flax
	$(BIN)/python -m flax_impl.features "$(RUN)" $(if $(IMAGE),"$(IMAGE)") $(if $(LAYER),--layer $(LAYER)) $(OWN) $(ON) $(ARGS)

export-torch: .venv/.export  ## write RUN (a run folder, checkpoint or .safetensors) to TO=FILE.pt2, .onnx or .pt (TorchScript)
	$(BIN)/python -m torch_impl.export $(if $(RUN),"$(RUN)") $(if $(TO),"$(TO)") $(OWN) $(ARGS)

export-flax: $(if $(filter %.onnx,$(TO)),.venv-onnx/.done,.venv/.flax)  ## write RUN to TO=FILE.stablehlo or .onnx
	$(if $(filter %.onnx,$(TO)),.venv-onnx/bin,$(BIN))/python -m flax_impl.export $(if $(RUN),"$(RUN)") $(if $(TO),"$(TO)") $(OWN) $(ARGS)

summary: .venv/.torch .venv/.flax  ## print both networks of ARCH (default: alexnet, or that of RECIPE_FILE) side by side: shapes and parameters
	$(BIN)/python -m parity_tests.summary $(if $(and $(RECIPE_FILE),$(filter file,$(origin ARCH))),,$(ARCH)) $(OWN)

study: .venv/.study  ## write both implementations side by side as pages into site/; RECIPE=... IMAGE=... WEIGHTS=..., RUN_TORCH=... RUN_FLAX=... NOISE=... add curves, which stay
	$(BIN)/python -m study $(if $(filter file,$(origin RECIPE)),,--recipe $(RECIPE)) $(if $(RUN_TORCH),--run-torch "$(RUN_TORCH)") $(if $(RUN_FLAX),--run-flax "$(RUN_FLAX)") \
		$(if $(NOISE),--noise "$(NOISE)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(IMAGE),--image "$(IMAGE)") $(OWN) $(ARGS)

break: .venv/.study  ## plant a fault in one framework and find it by what shows first; FAULT=NUMBER or words of its name (default: one that is not told), ANSWER=3
	$(BIN)/python -m study.break_it $(if $(FAULT),--fault "$(FAULT)") $(if $(ANSWER),--answer "$(ANSWER)") $(ARGS)

notebook: .venv/.notebook  ## open docs/quickstart.ipynb in Jupyter: both frameworks trained, and compared, step by step; ARGS="--no-browser"
	$(BIN)/python -m jupyterlab docs/quickstart.ipynb $(ARGS)

## Your own pictures (make train-torch DATASET=folder:DIR trains any recipe on them), and others' data and weights

photos: photos-$(FRAMEWORK)  ## train on FOLDER, a folder of pictures for each class, from torchvision's weights where there are any, and show in one page what came of it; EPOCHS, BATCH, LR, SEED, DEVICE, OUT, ARGS=--scratch

photos-torch: .venv/.export
	$(BIN)/python -m torch_impl.photos $(if $(FOLDER),"$(FOLDER)") $(FIELDS) $(ARGS)

photos-flax: .venv/.flax
	$(BIN)/python -m flax_impl.photos $(if $(FOLDER),"$(FOLDER)") $(FIELDS) $(ARGS)

predict: predict-$(FRAMEWORK)  ## name what is in IMAGE (a file or a folder), by RUN or pretrained weights, in FRAMEWORK (torch, flax)

predict-torch: .venv/.torch
	$(BIN)/python -m torch_impl.predict "$(IMAGE)" $(if $(RUN),--run "$(RUN)") $(OWN) $(ON) $(ARGS)

predict-flax: .venv/.flax
	$(BIN)/python -m flax_impl.predict "$(IMAGE)" $(if $(RUN),--run "$(RUN)") $(OWN) $(ON) $(ARGS)

data: .venv/.torch  ## prepare DATASET (cifar10, fashion_mnist, mnist, imagenet2012) with tensorflow-datasets
	$(BIN)/python -m common.commands.data $(if $(DATASET),"$(DATASET)") $(ARGS)

weights: .venv/.torch  ## download torchvision's pretrained AlexNet and convert it for Flax
	$(BIN)/python -m torch_impl.weights

## Prove and measure

parity: .venv/.test  ## compare every architecture in every precision, print the table and file it
	$(BIN)/python -m parity_tests.table $(ARGS)

mutants: .venv/.test  ## plant every fault, print where it is found and file the table; ARGS="--part shared" plants those in shared code alone
	$(BIN)/python -m parity_tests.mutants $(ARGS)

mutate: .venv/.test  ## change one place of FILES (default: all) at a time, expect a test to fail, go on where it stopped; ARGS="--sample 60 --seed 0"
	$(BIN)/python -m stress.mutate $(FILES) $(ARGS)

soak: .venv/.test  ## train for half an hour, killed every 20 to 60 s, in FRAMEWORK, and compare with a calm run bit for bit
	$(BIN)/python -m stress.soak $(FRAMEWORK) $(ARGS)

fuzz: .venv/.test  ## damage 10,000 files of every kind and open them: each must be refused in a sentence or be whole
	$(BIN)/python -m stress.fuzz $(ARGS)

results: .venv/.test  ## train the runs of README's table that are not filed yet, one after the other, and file each; ARGS="--recipes digits --seeds 0 --limit 3600"
	$(BIN)/python -m benchmarks.measured $(ARGS)

results-table: .venv/.test  ## write README's table of recipes, and docs/results.md, from what is filed
	$(BIN)/python -m benchmarks.measured_tables

results-check: .venv/.test  ## list the results below benchmarks/results that are of earlier code than this, and what makes them anew
	$(BIN)/python -m benchmarks.age

bench: .venv/.test  ## measure both frameworks beside plain loops on this machine's CPU, print the table and file it
	$(BIN)/python -m benchmarks.bench cpu

bench-gpu: .venv/.test  ## the same on a GPU, and the seconds to an accuracy, within nine minutes and without a network
	$(BIN)/python -m benchmarks.bench_gpu

growth: .venv/.test  ## measure throughput and memory against batch and image size, and plot them; SUITE=growth-gpu on a GPU
	$(BIN)/python -m benchmarks.bench $(SUITE)
	$(BIN)/python -m benchmarks.growth $(SUITE)

gpu-pack: .venv/.torch  ## write .gpu-pack, all that a GPU machine without a network needs; ARGS="--python 3.13 --data cifar10"
	$(BIN)/python -m benchmarks.gpu_pack $(ARGS)

gpu-run:  ## prove and measure there, in STAGES (smoke proof bench accuracy; AGAIN=... anew), within LIMIT seconds, into RESULTS
	$(or $(PYTHON),python3) -m benchmarks.gpu_run $(if $(STAGES),--stages $(STAGES)) $(if $(AGAIN),--again $(AGAIN)) \
		$(if $(LIMIT),--limit $(LIMIT)) $(if $(RESULTS),--results "$(RESULTS)") $(if $(DEVICE),--device "$(DEVICE)") $(ARGS)

## Develop

check: lint  ## what to run before a commit: style, types, imports and the tests that matter most (parity_tests/check.txt)
	$(PYTEST) $(SPREAD) @parity_tests/check.txt $(ARGS)

test: lint .venv-onnx/.done  ## check style, types and imports, and run the tests (about 12 minutes on 2 cores)
	$(PYTEST) $(SPREAD) $(ARGS)

test-full: .venv/.test .venv-onnx/.done  ## run every test, the long ones too, and file the curves under benchmarks/results
	XLA_FLAGS= PARITY_RESULTS=benchmarks/results $(PYTEST) $(SPREAD) -m "not gpu" $(ARGS)

test-gpu: .venv/.test  ## run the tests that need a GPU, and file what they measure under benchmarks/results
	GPU=required PARITY_RESULTS=benchmarks/results $(PYTEST) -m gpu $(ARGS)

lint: .venv/.test  ## check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy common torch_impl flax_impl parity parity_tests study stress benchmarks
	$(BIN)/lint-imports --no-cache

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --upgrade -o requirements.lock

clean:  ## remove both environments and caches; runs stay
	rm -rf .venv .venv-onnx .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info

help:  ## list every target
	@awk -F ':.*  ## ' '/^## /{printf "\n%s\n", substr($$0, 4)} /^[a-z-]+:.*  ## /{printf "  %-16s%s\n", $$1, $$2}' \
		$(firstword $(MAKEFILE_LIST))

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
	@$(INSTALL) -e '.[torch]'
	@touch $@

# CUDA for JAX comes as an extra, where the driver supports one: CUDA 13 from driver 580 on, CUDA 12 from 525 on.
.venv/.flax: $(LOCK) | $(BIN)/python
	@driver=$$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d . -f 1); \
	if [ "$${driver:-0}" -ge 580 ]; then extra=,cuda13; elif [ "$${driver:-0}" -ge 525 ]; then extra=,cuda12; fi; \
	echo "Installing JAX and Flax from the lock [flax$$extra] ..."; \
	$(INSTALL) -e ".[flax$$extra]"
	@touch $@

.venv/.export: $(LOCK) | .venv/.torch
	@echo "Installing the exporters from the lock ..."
	@$(INSTALL) -e '.[export]'
	@touch $@

# jax2onnx pins an older orbax than training takes: Flax's ONNX is written in an environment of its own.
.venv-onnx/.done: requirements-onnx.txt | $(BIN)/python
	@echo "Installing jax2onnx in .venv-onnx ..."
	$(BIN)/python -m venv .venv-onnx
	@$(BEAT) .venv-onnx/bin/python $(PIP) -r requirements-onnx.txt
	@touch $@

.venv/.study: $(LOCK) | .venv/.torch .venv/.flax
	@echo "Installing what the pages need from the lock ..."
	@$(INSTALL) -e '.[study]'
	@touch $@

.venv/.notebook: $(LOCK) | .venv/.torch .venv/.flax
	@echo "Installing Jupyter from the lock ..."
	@$(INSTALL) -e '.[notebook]'
	@touch $@

.venv/.tensorboard .venv/.wandb: .venv/.%: $(LOCK) | $(BIN)/python
	@echo "Installing $* from the lock ..."
	@$(INSTALL) -e '.[$*]'
	@touch $@

.venv/.test: $(LOCK) | .venv/.torch .venv/.flax
	@echo "Installing what the tests need from the lock ..."
	@$(INSTALL) -e '.[test]'
	@touch $@

# What each target takes from the command line; the first is what a word without a name is taken for.
TAKES.train-torch := RECIPE RECIPE_FILE DATASET EPOCHS BATCH LR SEED DEVICE OUT LOG WORLD ARGS
TAKES.train-flax := $(TAKES.train-torch)
TAKES.resume-torch := RUN RECIPE_FILE WORLD ARGS
TAKES.resume-flax := $(TAKES.resume-torch)
TAKES.resume := $(TAKES.resume-torch) FRAMEWORK
TAKES.compare := RECIPE RECIPE_FILE EPOCHS DEVICE ARGS
TAKES.find-lr-torch := RECIPE RECIPE_FILE DATASET BATCH SEED DEVICE TO ARGS
TAKES.find-lr-flax := $(TAKES.find-lr-torch)
TAKES.find-lr := $(TAKES.find-lr-torch) FRAMEWORK
TAKES.ablation := RECIPE RECIPE_FILE ARGS
TAKES.runs := FOLDER ARGS
TAKES.plot := RUNS TO ARGS
TAKES.evaluate-torch := RUN RECIPE_FILE DEVICE ARGS
TAKES.evaluate-flax := $(TAKES.evaluate-torch)
TAKES.photos-torch := FOLDER EPOCHS BATCH LR SEED DEVICE OUT ARGS
TAKES.photos-flax := $(TAKES.photos-torch)
TAKES.photos := $(TAKES.photos-torch) FRAMEWORK
TAKES.predict-torch := IMAGE RUN RECIPE_FILE DEVICE ARGS
TAKES.predict-flax := $(TAKES.predict-torch)
TAKES.predict := $(TAKES.predict-torch) FRAMEWORK
TAKES.features-torch := RUN IMAGE LAYER RECIPE_FILE DEVICE ARGS
TAKES.features-flax := $(TAKES.features-torch)
TAKES.features := $(TAKES.features-torch) FRAMEWORK
TAKES.export-torch := RUN TO RECIPE_FILE ARGS
TAKES.export-flax := $(TAKES.export-torch)
TAKES.summary := ARCH RECIPE_FILE
TAKES.study := RECIPE RECIPE_FILE RUN_TORCH RUN_FLAX NOISE IMAGE WEIGHTS ARGS
TAKES.break := FAULT ANSWER ARGS
TAKES.data := DATASET ARGS
TAKES.mutate := FILES ARGS
TAKES.soak := FRAMEWORK ARGS
TAKES.results := ARGS
TAKES.results-table :=
TAKES.results-check :=
TAKES.growth := SUITE
TAKES.gpu-run := STAGES AGAIN LIMIT RESULTS DEVICE ARGS
$(foreach target,notebook parity mutants fuzz gpu-pack check test test-full test-gpu,$(eval TAKES.$(target) := ARGS))
# What a target cannot do without, unless ARGS say it, and an example of each.
NEEDS.photos := FOLDER
NEEDS.predict := IMAGE
NEEDS.features := RUN
$(foreach target,resume evaluate export,$(eval NEEDS.$(target) := RUN))
NEEDS.export := RUN TO
NEEDS.data := DATASET
NEEDS.plot := RUNS
EXAMPLE.RUN := RUN=runs/digits-torch-20261122-155158, a run folder (`make runs` lists them)
EXAMPLE.RUNS := RUNS="runs/digits-torch-20261122-155158 runs/digits-flax-20261122-155520", run folders
EXAMPLE.FOLDER := FOLDER=pictures, a folder that has a folder of pictures for each class
EXAMPLE.IMAGE := IMAGE=cat.jpg, a picture or a folder of them
EXAMPLE.DATASET := DATASET=cifar10
EXAMPLE.TO := TO=model.onnx, the file to write
# Others' variables, which the commands get from make.
OTHERS := PYTHON% SHELL MAKEFLAGS GPU TMPDIR HOME PATH TFDS_% ALEXNET_% PARITY_% CUDA_% OMP_% GOMP_% MKL_% NCCL_% XLA_% JAX_% \
	TORCH_% PYTORCH_% PIP_% UV_% MPL% %_proxy %_PROXY

# A slip of the keyboard is told of before anything is installed.
comma := ,
GOALS := $(or $(MAKECMDGOALS),help)
ASKED := $(filter $(TARGETS),$(GOALS))
TAKEN := $(sort $(foreach goal,$(ASKED),$(TAKES.$(goal))))
ALL := $(sort $(foreach target,$(TARGETS),$(TAKES.$(target))))
bare = $(patsubst %-torch,%,$(patsubst %-flax,%,$(1)))
upper = $(shell printf %s '$(subst ','\'',$(1))' | tr a-z- A-Z_)
like = $(firstword $(filter $(1) $(1)S $(patsubst %S,%,$(1)) $(firstword $(subst _, ,$(1))),$(2)))
meant = $(or $(call like,$(call upper,$(1)),$(TAKEN)),$(call like,$(call upper,$(1)),$(ALL)))
first = $(firstword $(TAKES.$(firstword $(ASKED))))
define stray
$(or $(if $(filter $(1),$(ALL)),$(1) takes a value: $(1)=VALUE),$(if $(first),make $(firstword $(ASKED)) takes no word \
$(1): did you mean $(first)=$(1)?),There is no target $(1)$(if $(filter $(1)-%,$(TARGETS)),: did you mean one of \
$(filter $(1)-%,$(TARGETS))?,; `make` lists them all))
endef
define unknown
$(if $(filter $(1),$(ALL)),make $(ASKED) does not use $(1)$(if $(TAKEN),; it takes $(TAKEN)),There is no variable \
$(1)$(if $(call meant,$(1)),: did you mean $(call meant,$(1))=$($(1))?,$(if $(TAKEN),; make $(ASKED) takes $(TAKEN))))
endef
$(foreach word,$(filter-out $(TARGETS) .venv%,$(GOALS)),$(error $(strip $(call stray,$(word)))))
$(foreach name,$(filter-out $(TAKEN) $(OTHERS),$(if $(ASKED),$(GIVEN))),$(error $(strip $(call unknown,$(name)))))
ifneq ($(filter-out tensorboard wandb,$(LOG)),)
$(error LOG is tensorboard$(comma) wandb or "tensorboard wandb"$(comma) not $(LOG))
endif
ifeq ($(filter FRAMEWORK,$(TAKEN))$(FRAMEWORK),FRAMEWORK)
$(error $(if $(TYPED),FRAMEWORK is torch or flax$(comma) not $(TYPED),$(if $(RUN),$(RUN)/manifest.json does not say in \
which framework the run began: give the run folder itself or FRAMEWORK=torch,make resume needs $(EXAMPLE.RUN))))
endif
$(foreach goal,$(ASKED),$(foreach name,$(NEEDS.$(call bare,$(goal))),$(if \
	$($(name))$(if $(filter predict features,$(call bare,$(goal))),,$(ARGS)),,$(error make $(goal) needs $(EXAMPLE.$(name))))))
