# Two commands matter: `make up` runs everything, `make test` checks everything. Each target installs what it needs and
# is missing; a second run finds it in the cache (LAKEBEAT_CACHE, ~/.cache/lakebeat by default).

.DEFAULT_GOAL := help
.PHONY: help up up-stack build test bench chaos setup setup-stack

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# LAKEBEAT_CACHE is a setting of these scripts, and no setting of the program.
up: build ## build, then run everything: broker, simulator, ingest, models, doors (ARGS='--rate 100')
	@exec env --unset=LAKEBEAT_CACHE bin/lakebeat up $(ARGS)

up-stack: build setup-stack ## the same on a real Kafka and a real MinIO, which it installs and starts (ARGS='--rate 100')
	@exec scripts/up-stack.sh $(ARGS)

build: ## build bin/lakebeat
	@scripts/setup-rust.sh
	@scripts/build.sh

test: ## format, structure, lints, unit tests, end-to-end tests (STAGES='lints e2e' picks some)
	@scripts/test.sh $(STAGES)

bench: build setup-stack ## measure speed and freshness, write bench/results.md (EVENTS=5000000)
	@scripts/setup-python.sh
	@scripts/bench.sh $(EVENTS)

chaos: build setup-stack ## kill ingest 200 times and break what it stands on, write bench/chaos.md (KILLS=200 SEED=1 STAGES=kills)
	@scripts/chaos.sh $(STAGES)

setup: ## install what `make build` and `make test` need, and nothing else
	@scripts/setup-rust.sh
	@scripts/setup-tests.sh

setup-stack: ## install a real Kafka and MinIO (MinIO is built: five minutes on two cores, once)
	@scripts/setup-kafka.sh
	@scripts/setup-minio.sh
