# The front door. `make` alone prints what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= python3
export PYTHON
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Ansible starts a process per task; what they import is compiled once.
unexport PYTHONDONTWRITEBYTECODE
# Ansible insists on UTF-8, and the scripts read messages of other programs.
export LC_ALL := C.UTF-8

inventory_is_given = test -n "$(INVENTORY)" || \
	{ echo "Say which hosts: make $@ INVENTORY=path/to/inventory (inventory/example is one to copy)." >&2; exit 1; }

.PHONY: help
help:
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 26

.PHONY: demo
demo: .venv/.controller ## deploy two small models to a throw-away host on this machine and show their answers
	@scripts/demo

.PHONY: demo-down
demo-down: .venv/.controller ## remove what `make demo` made
	@scripts/demo-down

.PHONY: test
test: .venv/.tests ## lint, unit tests and Molecule scenarios; SCENARIO=name runs that scenario alone
	@scripts/test $(SCENARIO)

.PHONY: image-cuda
image-cuda: .venv/.tests ## compile the image with CUDA, for which no GPU is needed, and prove it; CUDA=12|13 ARCH=8.9
	@CUDA=$(CUDA) ARCH=$(ARCH) scripts/test image-cuda

.PHONY: lint
lint: .venv/.tests ## everything that can be told without running the project
	@scripts/lint

.PHONY: deploy
deploy: .venv/.controller ## run site.yml on your hosts: make deploy INVENTORY=inventory/yours [ARGS="--check --diff"]
	@$(inventory_is_given)
	@ansible-playbook -i $(INVENTORY) site.yml $(ARGS)

.PHONY: lock
lock: .venv/.controller ## write down the sha256 of your models, as the hub announces it: make lock INVENTORY=inventory/yours
	@$(inventory_is_given)
	@ansible-playbook -i $(INVENTORY) lock.yml $(ARGS)

.PHONY: benchmark
benchmark: .venv/.controller ## how fast are your hosts, and are they slower than before? make benchmark INVENTORY=inventory/yours
	@$(inventory_is_given)
	@ansible-playbook -i $(INVENTORY) benchmark.yml $(ARGS)

.PHONY: bundle
bundle: .venv/.controller ## all that hosts without a network need in one file: make bundle INVENTORY=inventory/yours [BUNDLE_MODELS=no]
	@$(inventory_is_given)
	@ansible-playbook -i $(INVENTORY) bundle.yml -e bundle_with_models=$(or $(BUNDLE_MODELS),yes) $(ARGS)

# Stamps: the environment is brought up to date when the pinned requirements change.
.venv/.controller: requirements.txt
	@scripts/step "Python environment .venv" scripts/venv requirements.txt
	@touch $@

.venv/.tests: tests/requirements.txt .venv/.controller
	@scripts/step "Python environment .venv, tools of the tests" scripts/venv tests/requirements.txt
	@touch $@
