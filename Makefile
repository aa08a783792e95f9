# The menu. Each target is a line that calls tox; `make help` lists them.
#
# What is needed beforehand: make and Python 3.11 or newer. The rest goes into .venv (tox itself) and
# .tox (one environment per job), both inside this folder; nothing needs root but `make services`.

# Choose a Python with `make PYTHON=python3.12 test`; by default the newest that works is taken.
PYTHON ?=
# How many isolated-<package> environments run at a time.
JOBS ?= 2
# Debian packages that tests of services need (`make services` installs them).
SERVICES := postgresql openssh-server openssh-client \
    xvfb xdotool libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 \
    libxcb-render-util0 libxcb-shape0 libxcb-xkb1 libxkbcommon-x11-0 libegl1 libgl1 libdbus-1-3 \
    libfontconfig1 fonts-dejavu-core \
    chromium chromium-driver r-base-core

TOX_REQUIREMENT := tox>=4.23,<5
TOX := .venv/bin/python -m tox
READY := .venv/tox-is-installed

.DEFAULT_GOAL := help
.PHONY: help demo test services lint types docs bench clean

help: ## list the menu
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## start a local cluster and do the main job on real data
	@$(TOX) run -e demo

test: $(READY) ## every package by itself, then all together with real processes
	@$(TOX) run-parallel --parallel $(JOBS) --parallel-no-spinner -m isolated
	@$(TOX) run -e integration

services: ## install the Debian packages that tests of services need (root)
	@sh .ci/services $(SERVICES)

lint: $(READY) ## ruff: rules and format
	@$(TOX) run -e lint

types: $(READY) ## mypy, strict, over every package
	@$(TOX) run -e types

docs: $(READY) ## build the documentation into build/site
	@$(TOX) run -e docs

bench: $(READY) ## measure ipyfleet beside its peers, each in its own process
	@$(TOX) run -e bench

clean: ## remove the environments and everything that was built
	rm -rf .venv .tox build demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find packages integration_tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): Makefile .ci/bootstrap
	@sh .ci/bootstrap .venv '$(TOX_REQUIREMENT)' '$(PYTHON)'
	@touch $@
