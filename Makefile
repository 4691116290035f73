# Every target is one `testbed …` command behind a set-up that is done once and redone when the pins change.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# uv where it is there, with the same pins. PyTorch's own index has builds for processors alone, a tenth of the size.
UV     := $(shell command -v uv)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python --index-strategy unsafe-best-match,$(BIN)/pip install --quiet --disable-pip-version-check)
CPU_TORCH := https://download.pytorch.org/whl/cpu

# What a user may set; each becomes a flag of the command when it is given.
flag = $(if $($(1)),--$(2)="$($(1))")
FLAGS_link    = $(call flag,BW,bw) $(call flag,DOWN,down) $(call flag,DELAY,delay) $(call flag,JITTER,jitter) \
	$(call flag,DISTRIBUTION,distribution) $(call flag,LOSS,loss) $(call flag,LOSS_BURST,loss-burst) \
	$(call flag,REORDER,reorder) $(call flag,QUEUE,queue) $(call flag,MTU,mtu) $(call flag,FRAMING,framing) \
	$(call flag,NETWORK,network) $(call flag,NODES,nodes) $(call flag,ACCOUNTING,accounting) \
	$(call flag,BACKEND,backend) $(call flag,IMAGE,image)
FLAGS_emulate = $(FLAGS_link) $(call flag,SCHEDULE,schedule) $(call flag,PRESET,preset) $(call flag,TARGET,target) \
	$(call flag,PACE,pace) $(call flag,LIVE,live) $(call flag,SEED,seed) \
	$(call flag,STEPS,steps) $(call flag,ARMS,arms) $(call flag,NAME,name)

.PHONY: setup quick emulate sweep report notebooks verify image doctor test acceptance lint check format clean
.DEFAULT_GOAL := help

# Of some shells and images: every process would compile our sources anew, and every worker of the tests rewrite theirs.
unexport PYTHONDONTWRITEBYTECODE

help: ## what there is to type
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## the virtual environment, with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@for tool in ip tc nsenter; do PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null || \
		{ echo "'$$tool' is not on this machine: type 'sudo apt-get install iproute2 util-linux', then this again." >&2; exit 2; }; done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; 'make … PYTHON=python3.11' chooses one." >&2; exit 2; }
	@test ! -L $(VENV) || \
		{ echo "$(VENV) is a link: what is installed would go where it points to. Remove it, then type this again." >&2; exit 2; }
	@echo "Setting up $(VENV) (once; PyTorch is most of it) …"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "The venv module is missing: type 'sudo apt-get install python3-venv', then this again." >&2; exit 2; }
	@index=; if ! command -v nvidia-smi >/dev/null && $(PYTHON) -c \
		'import urllib.request; urllib.request.urlopen("$(CPU_TORCH)/torch/", timeout=5)' 2>/dev/null; \
	then index="--extra-index-url $(CPU_TORCH)"; fi; $(INSTALL) $$index -c constraints.txt -e '.[dev]' $(PIP_ARGS)
	@touch $@

quick: $(STAMP) ## first light, about a minute: no exchange, exact, and 3.5 % of its bytes, for two nodes at BW=25mbit
	@$(BIN)/testbed emulate --bw "$(or $(BW),25mbit)" --nodes 2 --preset snapshot-small --pace none \
		--arms control,decentralised,best $(call flag,NAME,name) $(ARGS)

emulate: $(STAMP) ## five trainers over links of BW=300mbit, or NETWORK=cable (DELAY= LOSS= LIVE= SCHEDULE= …: README)
	@$(BIN)/testbed emulate $(FLAGS_emulate) $(ARGS)

sweep: $(STAMP) ## every arm on every link of a grid: GRID=experiments/bandwidth_latency.toml (docs/sweeps.md)
	@test -n "$(GRID)" || { echo "no grid was given: type 'make sweep GRID=experiments/bandwidth_latency.toml'" >&2; exit 2; }
	@test -z '$(strip $(FLAGS_link))' || { echo "the links of a sweep stand in its file: write them (bw, backend, …) under [settings] of $(GRID)" >&2; exit 2; }
	@$(BIN)/testbed sweep "$(GRID)" $(call flag,NAME,name) $(ARGS)

report: $(STAMP) ## one HTML file of a run: RUN=bandwidth_latency
	@test -n "$(RUN)" || { echo "no run was given: type 'make report RUN=NAME'; 'testbed runs' lists them" >&2; exit 2; }
	@$(BIN)/testbed report "$(RUN)"

notebooks: $(STAMP) ## run the notebooks on the runs that are there, in place
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	@cd notebooks && done=1 && for name in 0*.py; do name=$${name%.py}; \
		../$(BIN)/jupytext --quiet --to ipynb -o .$$name.ipynb $$name.py && \
		if ../$(BIN)/jupyter-execute --inplace .$$name.ipynb 2>.$$name.log; \
		then mv .$$name.ipynb $$name.ipynb; done=0; echo "notebooks/$$name.ipynb"; \
		else echo "notebooks/$$name.ipynb stays as it was: $$(grep . .$$name.log | tail -1 | sed 's/\x1b\[[0-9;]*m//g')"; fi; \
		rm -f .$$name.ipynb .$$name.log; done; exit $$done

verify: $(STAMP) ## build links of BW=300mbit, or NETWORK=cable, and measure them
	@$(BIN)/testbed verify $(FLAGS_link) $(ARGS)

# The engine that runs use, whatever context the client is in.
ENGINE = docker --host $${DOCKER_HOST:-unix:///var/run/docker.sock}
image: ## the images of a container node, slowlink-testbed, and of what shapes one (docs/docker.md)
	$(ENGINE) build --target node -t $(or $(IMAGE),slowlink-testbed) $(ARGS) .
	$(ENGINE) build --target shaper -t $(or $(IMAGE),slowlink-testbed)-shaper $(ARGS) .

doctor: $(STAMP) ## what this machine can do, and what to change where it cannot
	@$(BIN)/testbed doctor

# Tests that build links run this many side by side; who measures time runs alone at the end, and so do second
# attempts. What needs no link takes the processors' time that links leave, beside those that wait for deadlines; both
# say what they found when links are done.
WORLDS ?= 3
FREE ?= $(shell echo $$(( $$(nproc) + 1 )))
PYTEST  = $(BIN)/python -m pytest -q
BRIEF   = not alone and not acceptance
test: $(STAMP) ## the test suite, in minutes: WORLDS links at a time, beside them what needs none, then what measures time
	@said=$$(mktemp) waited=$$(mktemp) again=$$(mktemp); good() { test $$1 -eq 0 -o $$1 -eq 5; }; set -m; \
	( set +m; $(PYTEST) -p tests.again --defer=$$again -m "waits and not world and $(BRIEF)" $(ARGS) >$$waited 2>&1 & \
	  chrt --idle 0 $(PYTEST) -n $(FREE) --dist load -m "not world and not waits and $(BRIEF)" $(ARGS) >$$said 2>&1; free=$$?; \
	  wait $$!; waits=$$?; good $$free && good $$waits || exit 1; exit $$(( free < waits ? free : waits )) ) & \
	beside=$$!; set +m; trap 'kill -- -$$beside 2>/dev/null; rm -f $$said $$waited $$again' EXIT; trap 'exit 130' INT TERM; \
	$(PYTEST) -p tests.again --defer=$$again -n $(WORLDS) --dist loadscope -m "world and $(BRIEF)" $(ARGS); linked=$$?; \
	wait $$beside; free=$$?; cat $$said $$waited; \
	$(PYTEST) -p tests.again --deferred=$$again -m "alone and not acceptance" $(ARGS); alone=$$?; \
	for status in $$free $$linked $$alone; do good $$status || exit 1; done; \
	test $$free -eq 0 -o $$linked -eq 0 -o $$alone -eq 0 || { echo "no test was chosen" >&2; exit 1; }

# Goes on where it was ended, as long as no source has changed.
acceptance: $(STAMP) ## what takes long, up to an hour: containers in every combination, kills, whole sweeps (docs/tests.md: when)
	@$(PYTEST) -n $(WORLDS) --dist loadscope --resume=runs/acceptance.jsonl -m acceptance $(ARGS) || test $$? -eq 5

lint: $(STAMP) ## format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyrefly check

check: lint test ## format, lint, types, tests

format: $(STAMP) ## rewrite the sources as `make check` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: $(STAMP) ## what crashed runs of this checkout left behind (runs/ stays)
	@$(BIN)/testbed clean
