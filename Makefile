# Every target works in a fresh clone with Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# .ready marks the environment as installed. Make reinstalls when pyproject.toml or constraints.txt is newer.
READY := $(VENV)/.ready
# tests/conftest.py puts the tests in order.
WORKERS := -n logical --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-quick test-extended test-web web mutants random-cases campaigns bench gpu-kit docs compat dist check clean

demo: $(READY)
	$(BIN)/a2c-compiled demo

test: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m "not extended"

# Further cases of what `make test` checks: see tests/extended.py.
test-extended: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m extended

# runtime.js against runtime.py in node, and the web page in Chromium. npm installs in .node/; the scripts of its packages, which would load
# CUDA's libraries or a browser, do not run.
NPM = $(if $(shell command -v npm),npm,$(error this target needs npm: install node 20.19 or later from https://nodejs.org)) install \
	--prefix .node --no-audit --no-fund --ignore-scripts
test-web: $(READY)
	$(NPM) onnxruntime-node@1 onnxruntime-web@1 playwright-core@1
	$(BIN)/python -m pytest tests/export/test_runtime_js.py tests/export/test_web_*.py

# A web page in which a policy learns from scratch, in build/web. `make docs` then puts it into the site. ENV: another environment than
# CartPole-v1, such as Pendulum-v1.
web: $(READY) .node/node_modules/onnxruntime-web
	$(BIN)/python -m a2c_compiled.demo.web_page build/web --ort .node $(if $(ENV),--env $(ENV))

.node/node_modules/onnxruntime-web:
	$(NPM) onnxruntime-web@1

# The inner loop: all but the tests that compile, export or start processes.
test-quick: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

# Do the tests notice? Plants small faults, one at a time, and runs the tests of the layer.
mutants: $(READY)
	$(BIN)/python tests/mutants.py

# Random data against the float64 oracle: 100,000 cases of estimators and 10,000 of the loss.
random-cases: $(READY)
	$(BIN)/python tests/random_cases.py

# Faults at random, in short: guard pages, threads, forks, signals, full disks, damaged files. See CONTRIBUTING.md.
campaigns: $(READY)
	$(BIN)/python tests/campaigns/run.py

bench: $(READY)
	$(BIN)/a2c-compiled bench

# Fills .gpu/ with everything that a bare machine with a GPU needs: see benchmarks/gpu/README.md.
gpu-kit: $(READY)
	$(BIN)/python -m a2c_compiled.benchmarks.gpu.prepare

# The documentation site, in build/site. It needs no network. Warnings, such as a reference to nothing, are errors.
docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -b html -d build/doctrees docs build/site

# Builds dist/ and tries the packages in bare environments. SKIP: extras to leave out, such as envpool. PYTHONS: further Pythons to try.
dist:
	$(PYTHON) tests/project/dist.py $(if $(SKIP),--skip $(SKIP)) $(if $(PYTHONS),--python $(PYTHONS))

# The suite in fresh environments in .compat/ with other versions of the packages; LEG and TESTS select, see tests/compat.py.
compat: $(READY)
	$(BIN)/python tests/compat.py $(LEG) --python "$$(command -v $(PYTHON))" -- $(WORKERS) $(or $(TESTS),-m "not extended")

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

clean:
	rm -rf $(VENV) build dist *.egg-info runs .gpu .dist .compat docs/pictures/made

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,train,environments,peers,dev,docs]'
	touch $@
