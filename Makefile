# make install  install into .venv
# make demo   install, run all four stages on photographs that come with the install
# make test   install what the tests need, run all but the slowest
# make lint   ruff and mypy
# make docs   build the documentation into site/, links checked
# make torture  every fault that docs/guarantees.md names, injected in earnest; about 40 minutes
# make bench  every part side by side with what else a user could run; about 20 minutes
VENV ?= .venv
PYTHON ?= python3
RUN ?= runs/demo
BIN := $(VENV)/bin
# two processes, or as many as there are processors up to four, of one thread each: those of two
# would wait for each other half of the time; a file's tests stay together
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile
TORTURE_ARGS ?=

.PHONY: install demo test lint docs bench torture clean
install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/primaps-pipe demo "$(RUN)"

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

torture: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,torture]'
	$(BIN)/python -m tests.torture $(TORTURE_ARGS)

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.speed

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "primaps-pipe needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv "$(VENV)"
	touch $@

$(VENV)/.installed: $(VENV)/.made setup.cfg pyproject.toml
	@echo "installing into $(VENV): with PyTorch's default build, 6 GB and some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.made setup.cfg pyproject.toml
	@echo "installing into $(VENV) what the tests need, too: 7 GB and some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf "$(VENV)" build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
