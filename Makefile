# Two commands: `make demo` runs the main job on real files, `make test` runs the tests. Both set everything up.
# Of 22,000 files that are installed a run imports a third, so none is compiled before it is imported, and each only once.
export PYTHONDONTWRITEBYTECODE =
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint types docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps gradio gradio_client hf-gradio
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py demo-output

# What the tests of a file share is made once: a file stays in one process.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo-output site
