# Each target installs what it needs into .venv; a second call is quick.
#   make test PYTHON=python3.12      another interpreter (remove .venv first)

PYTHON ?= python3
JOBS   ?= 2
GPU_JOBS ?= 6
VENV   := .venv
RUN    := $(VENV)/bin/python
CLIENTS      := .venv-clients
MORE_CLIENTS := .venv-more-clients
INTEGRATIONS := .venv-integrations
# Folders with a package.json, and what npm has installed into each.
JS_FOLDERS   := examples/transformers_js examples/transformers_js/xenova tests/js
JS_INSTALLED := $(JS_FOLDERS:=/node_modules/.installed)
CLIENTS_JS   := tests/clients/js/node_modules/.installed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-clients test-integrations test-js lint parity fuzz bench bench-gpu aot gpu gpu-proof gpu-report gpu-proven clean
# A set of extras is installed once, and again when pyproject.toml or constraints.txt changes.
.PRECIOUS: $(VENV)/.installed-%

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## search the standard library by meaning, with a real checkpoint, offline
	@mkdir -p build
	$(VENV)/bin/nomicbert demo -o build/demo.parquet --overwrite

test: $(VENV)/.installed-test $(CLIENTS)/.installed  ## run the test suite in JOBS processes
	$(RUN) -m pytest -n $(JOBS) -p no:benchmark

test-clients: $(VENV)/.installed-test $(MORE_CLIENTS)/.installed $(if $(shell command -v npm),$(CLIENTS_JS))
test-clients:  ## test the server with langchain, llama-index, cohere, ollama, ...
	@command -v npm >/dev/null || echo "npm is missing: clients in JavaScript are not tested" >&2
	NOMICBERT_TEST_MORE_CLIENTS=$(MORE_CLIENTS)/bin/python \
		$(RUN) -m pytest tests/clients -p no:benchmark $(ARGS)

test-integrations: $(VENV)/.installed-test $(INTEGRATIONS)/.installed  ## test the wrappers for langchain, llama-index, ...
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations --ignore tests/integrations/test_mteb.py \
		-p no:benchmark $(ARGS)

test-js: $(VENV)/.installed-test $(JS_INSTALLED)  ## test exports with Transformers.js, maps and the server's pages, in node and in Chromium
	NOMICBERT_TEST_JS=1 $(RUN) -m pytest tests/js -p no:benchmark $(ARGS)

lint: $(VENV)/.installed-lint  ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

parity: $(VENV)/.installed-test  ## compare with transformers on freshly drawn weights; prints a table
	NOMICBERT_SEED=$${NOMICBERT_SEED:-$$($(RUN) -c "import secrets; print(secrets.randbelow(10**6))")} \
		$(RUN) -m pytest tests/parity -n $(JOBS) -p no:benchmark --parity-report . $(ARGS)

fuzz: $(VENV)/.installed-test  ## load 100,000 damaged checkpoints; ARGS="--seed 7 --only 123" replays one
	PYTHONPATH=.:kernels $(RUN) -W ignore -m tests.fuzz --cases 100000 --jobs $(JOBS) --compare 0.05 $(ARGS)

bench: $(VENV)/.installed-test  ## time each op against its peers; ARGS="--quick" checks that they run
	$(RUN) -m pytest bench -o python_files='bench_*.py' $(ARGS)

# With another version of triton: pip install --no-deps --target FOLDER triton==3.6.0, then TRITON=FOLDER
aot: $(VENV)/.installed-test  ## compile all Triton kernels for all architectures, without a GPU; ARGS="--arch sm_90"
	PYTHONPATH=$(TRITON:%=%:).:kernels $(RUN) -m bench.aot $(or $(ARGS),--out bench/results/aot.json)

# These targets install nothing: they use the GPU machine's Python, torch, triton, transformers and
# pytest. Results go to OUT; compiled kernels stay in build/.
gpu gpu-proof gpu-report gpu-proven bench-gpu: export PYTHONPATH := .:kernels
gpu gpu-proof bench-gpu: export TRITON_CACHE_DIR ?= $(CURDIR)/build/gpu/triton
gpu gpu-proof gpu-report gpu-proven: OUT ?= build/proof

gpu-proof:  ## check and measure the kernels on this machine's GPU in eight minutes; ARGS="--dry"
	$(PYTHON) -m bench.gpu.proof --out $(OUT)/proof.jsonl $(ARGS)

gpu-report:  ## make tables of the results in OUT
	$(PYTHON) -m bench.gpu.report $(OUT)/proof.jsonl

gpu-proven:  ## mark a launch table as proven by the results in OUT, or list what is missing
	$(PYTHON) -m bench.gpu.proven $(OUT)

# -W default: a warning of a newer library must not fail a test here.
gpu:  ## test all kernels and whole models on this machine's GPU, in GPU_JOBS processes
	NOMICBERT_RESULTS=$(OUT) $(PYTHON) -m pytest --import-mode=importlib -m gpu tests/gpu \
		-n $(GPU_JOBS) --maxschedchunk 2 --max-worker-restart 100 -W default --continue-on-collection-errors \
		-p no:benchmark -p no:cacheprovider $(ARGS)

# Continues where it stopped: cases that LINES has are kept. The report covers all cases so far.
bench-gpu: LINES := build/gpu.jsonl
bench-gpu:  ## time kernels and whole models on this machine's GPU; PART=gemm, ARGS="--minutes 9"
	$(PYTHON) -m bench.gpu --out $(LINES) $(if $(PART),--part $(PART)) $(ARGS); \
		code=$$?; [ ! -f $(LINES) ] || $(PYTHON) -m bench.gpu.report $(LINES) || exit; \
		exit $$code

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(CLIENTS) $(MORE_CLIENTS) $(INTEGRATIONS) $(dir $(JS_INSTALLED) $(CLIENTS_JS)) examples/transformers_js/site
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

# The packages of another environment's interpreter come after one's own.
define ON_TOP_OF
$(1) -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	> $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth
endef

# Client libraries for tests of the server, apart from nomicbert: their requirements do not agree
# with ours. The lists name all that is needed, hence --no-deps; what is not imported is not compiled.
$(CLIENTS)/.installed: tests/clients/requirements.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv --clear --without-pip $(@D)
	$(RUN) -m pip --python $(@D)/bin/python install --quiet --no-compile --no-deps --requirement $<
	@touch $@

# Larger libraries, on top of those: several need nomic or openai, too.
$(MORE_CLIENTS)/.installed: tests/clients/more.txt | $(CLIENTS)/.installed
	$(PYTHON) -m venv --clear --without-pip $(@D)
	$(RUN) -m pip --python $(@D)/bin/python install --quiet --no-compile --no-deps --requirement $<
	$(call ON_TOP_OF,$(CLIENTS)/bin/python)
	@touch $@

# Libraries of nomicbert/integrations, on top of .venv: its packages are on the path too.
$(INTEGRATIONS)/.installed: tests/integrations/requirements.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv --clear --without-pip $(@D)
	$(RUN) -m pip --python $(@D)/bin/python install --quiet --no-compile --no-deps --requirement $<
	$(call ON_TOP_OF,$(RUN))
	@touch $@

# Without install scripts: that of onnxruntime-node fetches CUDA libraries from elsewhere.
%/node_modules/.installed: %/package.json %/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js 20 or newer" >&2; exit 1; }
	cd $* && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@
