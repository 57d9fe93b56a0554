# Everything starts from a bare clone: `make demo` and `make test` set up a virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint docs clean
# A virtual environment that could not be made whole is made again.
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/specreg sweep --preset demo --out demo
	@echo 'Now look at demo/samples.png. Next: $(BIN)/specreg compare --out mine --data YOUR-IMAGES'

test: $(VENV)/.dev lint docs
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What is promised of long trainings, in full; `make test` has a smaller version of each.
soak: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m soak --figures=docs/results/reliability.json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/; a broken link or anchor fails.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The constraints pin every version, torch's CPU build among them, so that the numbers are the same everywhere.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo site
