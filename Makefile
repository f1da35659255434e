# `make` lists the targets. Paths are relative on purpose: the folder's own may hold spaces.
SHELL := /bin/sh
PYTHON_BIN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help environment demo test chaos up down check bench lock env image compose-test

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

environment:
	@scripts/environment

demo: environment ## Show everything at work in about 20 seconds; ends by itself
	@.venv/bin/retailmedia demo

test: environment ## Run the tests on servers of their own
	@$(PYTHON_BIN) -m pytest -n 2 --dist loadfile -m "not chaos"

chaos: environment ## Break things on purpose, then nothing for SOAK seconds: SEED=… FAULTS=… SOAK=… OUTAGE=…
	@$(PYTHON_BIN) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS))
	@$(PYTHON_BIN) -m tests.chaos $(if $(SEED),--seed $(SEED)) --soak $(if $(SOAK),$(SOAK),300)
	@$(PYTHON_BIN) -m tests.chaos $(if $(SEED),--seed $(SEED)) --outage $(if $(OUTAGE),$(OUTAGE),300)

up: environment ## Start servers, workers, beat and Flower; Ctrl-C stops them
	@.venv/bin/retailmedia up

down: environment ## Stop whatever was left running
	@.venv/bin/retailmedia down

check: environment ## Lint, formatting, types, layers, known vulnerabilities
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m ruff format --check .
	$(PYTHON_BIN) -m mypy
	$(PYTHON_BIN) -m pytest tests/unit/test_layers.py
	scripts/audit

bench: environment ## Measure speed
	@$(PYTHON_BIN) -m bench

lock: environment ## Pin the dependencies anew, with hashes
	@scripts/lock

env: ## Write .env for docker-compose, with random passwords
	@scripts/env

image: ## Build the container image: BASE_IMAGE=…
	@docker build $(if $(BASE_IMAGE),--build-arg BASE=$(BASE_IMAGE)) --tag retailmedia-sync:latest .

compose-test: environment ## Run the containers for real: scale, kill, stop, compare
	@$(PYTHON_BIN) -m tests.compose
