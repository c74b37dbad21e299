# What a contributor runs. Every target sets itself up; `make` alone lists them.

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
VENV = $(ROOT)/.venv
RIVALS = $(ROOT)/.venv-rivals
RECIPE = plate
DATA = synthetic
ARGS =

CODE := service training export loadtest tests
READY = $(VENV)/.installed
PYTEST = $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# A folder of data sets, for the sources that read one; a relative path counts from this folder.
ifdef MDCTR_DATA_DIR
export MDCTR_DATA_DIR
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo bench engine-check bench-training bench-stream bench-add-domain bench-swap bench-domains bench-models bench-csamp bench-served bench-student bench-exposures bench-gpu simulate-experiments simulate-drift dashboards size k8s-rules docs results loadtest locust coverage test test-all fuzz audit sbom lint clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' '$(ROOT)/Makefile'

demo: $(READY) ## Train, export, publish, serve and measure [RECIPE=plate|distil] [DATA=synthetic] [MDCTR_DATA_DIR=folder]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest demo --recipe '$(RECIPE)' --data '$(DATA)'

engine-check: $(READY) ## Build with TensorRT, run, compare with ONNX Runtime: BUNDLE=folder [ARGS='--candidates 128,512']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m export engine-check '$(or $(BUNDLE),$(error give BUNDLE=folder))' $(ARGS)

bench-training: $(READY) $(RIVALS)/.installed ## Training speed beside other libraries [DATA=synthetic] [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-training --data '$(DATA)' $(ARGS)

bench-stream: $(READY) ## Training on rows that stay on the disk: rows/s and peak memory [ARGS='--rows 1000000']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-stream $(ARGS)

bench-swap: $(READY) ## Packs promoted under traffic while Redis and a worker are killed [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-swap $(ARGS)

bench: $(READY) ## Requests/s over HTTP, beside the engine alone and a naive service [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench $(ARGS)

loadtest: $(READY) ## Capacity within a latency budget, overload, SIGTERM, bad clients [ARGS='--part soak']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest loadtest $(ARGS)

locust: $(READY) ## Locust against a running service [ARGS='--host URL --bundle FOLDER -u 50 -r 50 -t 60s']
	@cd '$(ROOT)' && '$(VENV)/bin/locust' -f loadtest/locustfile.py --headless $(ARGS)

bench-domains: $(READY) ## Ten thousand domains in one service, by form of pack [ARGS='--items 200000 --form sparse']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-domains $(ARGS)

bench-models: $(READY) ## Every model of results-kuairand-models over HTTP: speed, packs, answers beside torch's [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-models $(ARGS)

bench-served: export OMP_NUM_THREADS = 1
bench-served: $(READY) ## Microseconds a candidate of every model of `results` [DATA=synthetic] [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-served --data '$(DATA)' $(ARGS)

bench-student: $(READY) ## Latency of a student, and of the same model without its teacher [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-student $(ARGS)

bench-exposures: $(READY) ## Processor time of a service with the exposure log, beside one without [ARGS='--rounds 50']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-exposures $(ARGS)

bench-csamp: $(READY) ## Latency with text in training, and in the graph [DATA=synthetic] [MDCTR_DATA_DIR=folder]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-csamp --data '$(DATA)' $(ARGS)

bench-gpu: $(READY) ## Scoring on a GPU beside bare torch, many domains in one launch, float16, HTTP [ARGS='--part engine --quick']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-gpu $(ARGS)

simulate-experiments: export OMP_NUM_THREADS = 1
simulate-experiments: $(READY) ## How often reports and canaries are wrong: simulated A/A, A/B, trials [ARGS='--runs 100']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest simulate-experiments $(ARGS)

simulate-drift: $(READY) ## The alarms on a simulated week, and on shifts that are planted in it [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest simulate-drift $(ARGS)

dashboards: $(READY) ## Every panel of the dashboard with data from a real Prometheus, as one picture [ARGS='--seconds 120']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest dashboards --picture docs/figures/dashboard.png $(ARGS)

size: $(READY) ## Cores, pods and bytes of a fleet [ARGS='--requests 1000000 --candidates 200']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest size $(ARGS)

k8s-rules: $(READY) ## The Prometheus operator's rules, made again from deploy/prometheus
	@cd '$(ROOT)' && '$(VENV)/bin/python' deploy/k8s/prometheus_rule.py > deploy/k8s/components/operator/prometheusrule.yaml

docs: $(READY) ## The documentation's site, runs/site; a warning or a broken link fails
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m tests.docs.site

bench-add-domain: $(READY) ## Seconds to a new domain's first answer, and its AUC [DATA=synthetic] [ARGS=...]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m loadtest bench-add-domain --data '$(DATA)' $(ARGS)

# A comparison of models: runs/results-<plan>/{report.json,table.md,*.png}. A plan is training/plans/<plan>.yaml.
results-douban: ## PLATE and its ablation on Douban, 3 seeds [MDCTR_DATA_DIR=folder] [ARGS='--processes 16']
results-kuairand: ## The same on KuaiRand [MDCTR_DATA_DIR=folder]
results-kuairand-models: ## Nine paradigms on KuaiRand [MDCTR_DATA_DIR=folder]
results-synthetic-100: ## The same on a hundred simulated domains
results-csamp: ## Text aligned into models of ids [MDCTR_DATA_DIR=folder] [an hour on 2 cores]
results-uni-ctr: ## A language model as teacher, its student, and models of ids [MDCTR_DATA_DIR=folder] [a GPU]
results: export OMP_NUM_THREADS = 1
results: $(READY) ## Every model on the same rows, three data sets [MDCTR_DATA_DIR=folder] [hours on 2 cores]
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m training compare training/plans/results.yaml --out runs/results $(ARGS)

results-%: export OMP_NUM_THREADS = 1
results-%: $(READY)
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m training compare 'training/plans/$(subst -,_,$*).yaml' \
		--out 'runs/results-$*' $(ARGS)

# One thread a worker: two workers that each take every core are slower than one.
test: export OMP_NUM_THREADS = 1
test: $(READY) ## The tests, without the cross product [ARGS='-k plate']
	@cd '$(ROOT)' && $(PYTEST) -m 'not cross' $(ARGS)

test-all: export OMP_NUM_THREADS = 1
test-all: $(READY) ## The tests, with every paradigm over every backbone [ARGS=...]
	@cd '$(ROOT)' && $(PYTEST) $(ARGS)

coverage: export OMP_NUM_THREADS = 1
coverage: $(READY) ## The tests, and which lines they reach
	@cd '$(ROOT)' && $(PYTEST) -m 'not cross' --cov --cov-report=term-missing:skip-covered $(ARGS)

fuzz: export OMP_NUM_THREADS = 1
fuzz: $(READY) ## Damaged input for every reader [ARGS='--minutes 60 --only HTTP']
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m tests.fuzz $(ARGS)

audit: $(READY) ## Known vulnerabilities that nobody answered [ARGS=--where-reachable]
	@cd '$(ROOT)' && '$(VENV)/bin/python' deploy/audit.py $(ARGS)

sbom: $(READY) ## What a service's image carries: runs/sbom.json [ARGS='--extra exposures']
	@cd '$(ROOT)' && '$(VENV)/bin/python' deploy/sbom.py $(ARGS)

lint: $(READY) ## Format, lint, types and the arrows between packages
	@cd '$(ROOT)' && '$(VENV)/bin/ruff' format --check $(CODE)
	@cd '$(ROOT)' && '$(VENV)/bin/ruff' check $(CODE)
	@cd '$(ROOT)' && '$(VENV)/bin/mypy'
	@cd '$(ROOT)' && '$(VENV)/bin/lint-imports'

clean: ## Remove caches and builds; the environment and runs/ stay
	@cd '$(ROOT)' && rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
		.hypothesis .schemathesis .coverage .coverage.* coverage.xml
	@cd '$(ROOT)' && find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(ROOT)/pyproject.toml $(ROOT)/constraints.txt
	@echo 'Setting up $(VENV); the first time takes minutes'
	@$(PYTHON) -c 'import sys; sys.exit("mdctr needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@test -x '$(VENV)/bin/pip' || $(PYTHON) -m venv '$(VENV)'
	@cd '$(ROOT)' && '$(VENV)/bin/python' -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch '$@'

# Other libraries, with the torch of ours. The benchmark's command runs without them, too, and says so.
$(RIVALS)/.installed: $(ROOT)/Makefile
	@echo 'Setting up $(RIVALS)'
	@test -x '$(RIVALS)/bin/pip' || $(PYTHON) -m venv '$(RIVALS)'
	@'$(RIVALS)/bin/python' -m pip install -qq torch==2.13.0 torch-rechub==0.9.0 fuxictr==2.3.10 deepctr-torch==0.3.0
	@touch '$@'
