# Needs Python 3.11 or newer, git and make. `make` alone lists the targets.
PYTHON ?= python3
ARGS ?=

VENV := .venv
INSTALLED := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
CLIENTS := build/clients

# Every pip below keeps to the pinned set, the one that fills a build's own environment too (the second name is for pip >= 25.3).
# The path is relative because pip splits this variable at spaces.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# An sh prologue: "$folder" is an empty folder that is gone afterwards, however the recipe ends.
IN_A_FOLDER = set -eu; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; trap 'exit 130' INT TERM

.DEFAULT_GOAL := help
.PHONY: help venv demo test clients lint types wheel-test newest lowest constraints clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

venv: $(INSTALLED)  ## make the virtual environment .venv with the pinned set (the others do it by themselves)
	@echo "$(VENV) is ready"

demo: $(INSTALLED)  ## behaviour cloning from start to end, in half a minute (ARGS="..." goes to `dilqr demo`)
	@$(VENV)/bin/dilqr demo $(ARGS)

test: $(INSTALLED)  ## the whole test suite (ARGS="..." goes to pytest)
	@$(VENV)/bin/pytest $(ARGS)

clients: $(CLIENTS) $(INSTALLED)  ## our policies inside `imitation` (ARGS="..." goes to pytest)
	@PYTHONPATH="$(CURDIR)/$(CLIENTS)$${PYTHONPATH:+:$$PYTHONPATH}" $(VENV)/bin/pytest tests/clients $(ARGS)

# Away from .venv and without what it asks for, which are older releases of what is there.
$(CLIENTS): tests/clients/requirements.txt $(INSTALLED)
	@rm -rf $@ $@.partial
	@$(VENV)/bin/pip install --quiet --no-deps --target $@.partial -r $<
	@mv $@.partial $@ && touch $@

lint: $(INSTALLED) types  ## ruff and mypy
	@echo "ruff"
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --check --quiet --diff .

# mypy goes by folders alone, so it is shown the three packages where a wheel would put them. Not the tests: they look inside modules,
# whose attributes are all `Tensor | Module` to mypy.
types: $(INSTALLED)  ## mypy only
	@echo "mypy"
	@rm -rf build/typed && mkdir -p build/typed/dilqr_rl
	@ln -s "$(CURDIR)"/dilqr_rl/* "$(CURDIR)/envs" "$(CURDIR)/agents" build/typed/dilqr_rl/
	@$(VENV)/bin/mypy build/typed/dilqr_rl $(wildcard examples/*.py benchmarks/*.py docs/*.py)

# Builds the wheel and runs the quick part of the suite on it, away from the checkout, in an environment without .venv, whose versions
# PIP_CONSTRAINT tells. Machine code is found by its source and numba's version: what `make test` has compiled serves here too.
define TEST_THE_WHEEL
unset PYTHONPATH; \
echo "building the wheel"; \
$(VENV)/bin/python -m build --outdir "$$folder/dist" . >"$$folder/log" 2>&1 || { cat "$$folder/log"; exit 1; }; \
wheel=$$(echo "$$folder"/dist/*.whl); \
echo "installing $${wheel##*/} into a fresh environment"; \
$(PYTHON) -m venv "$$folder/venv"; \
"$$folder/venv/bin/pip" install --quiet "$$wheel[test]"; \
"$$folder/venv/bin/pip" check; \
mkdir "$$folder/suite"; cp -R tests pyproject.toml "$$folder/suite"; cd "$$folder/suite"; \
"$$folder/venv/bin/python" -c "import dilqr_rl; print('testing', dilqr_rl.__file__)"; \
"$$folder/venv/bin/pip" list --format freeze | grep -E "^(torch|numpy|numba|gymnasium|stable.baselines3)==" | paste -s -d " "; \
export DILQR_CACHE_DIR="$(CURDIR)/.pytest_cache/d/native_code"; \
"$$folder/venv/bin/pytest" -m "not slow" $(ARGS)
endef

wheel-test: $(INSTALLED)  ## build the wheel and run the quick part of the suite on it, away from the checkout
	@$(IN_A_FOLDER); $(TEST_THE_WHEEL)

# Without pins, so that what the machine's own pip is told about versions counts.
newest: $(INSTALLED)  ## wheel-test on the newest releases that pyproject.toml allows (with CUDA: some 7 GB, gone afterwards)
	@$(IN_A_FOLDER); unset PIP_CONSTRAINT PIP_BUILD_CONSTRAINT; $(TEST_THE_WHEEL)

lowest: $(INSTALLED)  ## wheel-test on the oldest releases that pyproject.toml allows (as large; on Python 3.11)
	@$(IN_A_FOLDER); $(VENV)/bin/python tests/lowest_versions.py >"$$folder/pins"; \
	export PIP_CONSTRAINT="$$folder/pins" PIP_BUILD_CONSTRAINT="$$folder/pins"; $(TEST_THE_WHEEL)

constraints: $(INSTALLED)  ## resolve the ranges of pyproject.toml anew and rewrite constraints.txt; torch keeps its pin
	@$(IN_A_FOLDER); \
	head -n 1 constraints.txt >"$$folder/pins"; grep '^torch==' constraints.txt >"$$folder/torch"; \
	export PIP_CONSTRAINT="$$folder/torch" PIP_BUILD_CONSTRAINT="$$folder/torch"; \
	echo "resolving"; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/pip" install --quiet -e ".[dev]"; \
	"$$folder/venv/bin/pip" check; \
	"$$folder/venv/bin/pip" freeze --all --exclude-editable --exclude pip | sed 's/^\(torch==[0-9.]*\)+.*/\1/' >>"$$folder/pins"; \
	cp "$$folder/pins" constraints.txt; \
	git --no-pager diff --stat -- constraints.txt

clean:  ## remove what the other targets made, .venv too
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The marker tells an environment whose making was cut off, which is thrown away, from one that is out of date, or where pip failed and
# has put everything back: there pip goes on.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no '$(PYTHON)' here. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "dilqr_rl needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' can't make virtual environments: its venv module is missing (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@if [ -e $(UNFINISHED) ]; then echo "the last installation was cut off: starting $(VENV) again"; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	@echo "installing the pinned set into $(VENV) (some 2 GB, a few minutes; only when it has changed)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet -e ".[dev]" -c constraints.txt || { rm -f $(UNFINISHED); exit 1; }
	@mv $(UNFINISHED) $@
