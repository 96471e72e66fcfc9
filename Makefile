# The commands of this project. Each is a script that can be run by itself; `make` alone lists them.

.DEFAULT_GOAL := help
# Recipes use bash because the shared script does.
SHELL := bash
.PHONY: help fuzz demo test chaos vm sim schemathesis lint fmt bench peers seccomp toolchains engine images deb sbom deny helm docs read ci clean

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## From nothing to a job in a sealed cell, and back
	@scripts/demo.sh

test: ## All tests, the real engine included
	@scripts/test.sh

chaos: ## Faults on purpose, for an hour or more: make chaos ROUNDS=1000
	@JOBCELL_CHAOS_ROUNDS=$(or $(ROUNDS),1000) scripts/chaos.sh

vm: ## A Debian with systemd in a virtual machine: limits, the package, power cuts: make vm PARTS="limits"
	@scripts/vm.sh $(PARTS)

schemathesis: ## Hold a running server to docs/openapi.json with generated requests
	@scripts/schemathesis.sh

lint: ## Format and clippy, warnings are errors
	@scripts/lint.sh

fmt: ## Format the source
	@. scripts/lib.sh && find_cargo && need_rust_component rustfmt fmt && cargo fmt --all

sim: ## Runs of the simulated agent: SEEDS=1000000, or SEED=172 for one
	@scripts/sim.sh

fuzz: ## Fuzz targets, a minute each: SECONDS_EACH=3600 for longer
	@scripts/fuzz.sh

bench: ## Benchmarks, against a reference in the same run
	@scripts/bench.sh

peers: ## The comparison with peers; builds them from Go modules: make peers MEASURES="latency kill"
	@benches/peers/run.sh $(MEASURES)

seccomp: ## Prove the seccomp profiles from inside a cell
	@scripts/engine.sh >/dev/null && scripts/images.sh bash && scripts/seccomp-check.sh

toolchains: ## Real jobs under the profiles: C, git, curl, node, Go, Rust, Java (an image of 1.6 GB)
	@scripts/engine.sh >/dev/null && scripts/images.sh bash python tools && . scripts/lib.sh && find_cargo && \
	  JOBCELL_TEST_ENGINE=required JOBCELL_TEST_TOOLS=required cargo test --locked --test it profiles:: -- --nocapture

engine: ## Make sure that a Docker engine answers
	@scripts/engine.sh

images: ## Make the job images
	@scripts/images.sh

deb: ## Make the Debian package
	@scripts/deb.sh

sbom: ## What is in the program: target/sbom/jobcell.cdx.json (CycloneDX) and THIRD-PARTY, the licences of others
	@. scripts/lib.sh && find_cargo && scripts/sbom.py --fetch target/sbom

deny: ## Licences, bans and sources of the crates, by cargo-deny, which is built first (minutes); advisories need GitHub: make deny CHECKS=all
	@scripts/deny.sh $(CHECKS)

helm: ## Check the Kubernetes chart with helm, which is built first (Go, minutes), and render deploy/helm/rendered anew
	@scripts/helm.sh

docs: ## Build the documents' site into target/site; links and anchors are checked
	@scripts/site.sh

read: ## Build the documents' site and read every page in Chromium
	@scripts/site.sh read

ci: ## What CI runs
	@.ci/run

clean: ## Remove what builds made; images, volumes and the engine stay
	@. scripts/lib.sh && find_cargo && cargo clean
