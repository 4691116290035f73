# Every target is one `testbed …` command behind a set-up that is done once and redone when the pins change.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# What a user may set; each becomes a flag of the command when it is given.
FLAGS_emulate = $(if $(BW),--bw $(BW)) $(if $(DELAY),--delay $(DELAY)) $(if $(LOSS),--loss $(LOSS)) \
	$(if $(NODES),--nodes $(NODES)) $(if $(PRESET),--preset $(PRESET)) $(if $(TARGET),--target $(TARGET)) \
	$(if $(PACE),--pace $(PACE)) $(if $(LIVE),--live $(LIVE)) $(if $(ACCOUNTING),--accounting $(ACCOUNTING)) \
	$(if $(BACKEND),--backend $(BACKEND)) $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS)) \
	$(if $(NAME),--name $(NAME)) $(if $(ARMS),--arms $(ARMS)) $(ARGS)

.PHONY: setup emulate verify doctor test check format clean
.DEFAULT_GOAL := help

help: ## what there is to type
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## the virtual environment, with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@command -v ip tc nsenter >/dev/null 2>&1 || for tool in ip tc nsenter; do command -v $$tool >/dev/null 2>&1 || \
		{ echo "'$$tool' is not on this machine: type 'sudo apt-get install iproute2 util-linux', then the same command again." >&2; exit 2; }; done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; 'make … PYTHON=python3.11' chooses one." >&2; exit 2; }
	@echo "Setting up $(VENV) (once; PyTorch is most of it) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "The venv module is missing: type 'sudo apt-get install python3-venv'." >&2; exit 2; }
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

emulate: $(STAMP) ## five trainers over links of BW=300mbit (DELAY= NODES= PRESET= TARGET= PACE= LIVE= ACCOUNTING=)
	@$(BIN)/testbed emulate $(FLAGS_emulate)

verify: $(STAMP) ## build links of BW=… and measure them
	@$(BIN)/testbed verify $(if $(BW),--bw $(BW)) $(if $(NODES),--nodes $(NODES)) $(if $(ACCOUNTING),--accounting $(ACCOUNTING)) $(ARGS)

doctor: $(STAMP) ## what this machine can do, and what to change where it cannot
	@$(BIN)/testbed doctor

test: $(STAMP) ## the test suite
	@$(BIN)/python -m pytest -q $(ARGS)

check: $(STAMP) ## format, lint, types, tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyrefly check
	@$(MAKE) --no-print-directory test

format: $(STAMP) ## rewrite the sources as `make check` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: $(STAMP) ## what crashed runs of this checkout left behind (runs/ stays)
	@$(BIN)/testbed clean
