# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VERSION := $(shell cat VERSION)
DEB := dist/fdbridge_$(VERSION)_amd64.deb
# How many inputs each fuzzer tries in "make test", and those that unpack a kernel or ask over a socket for each one. A
# number, not a time: when a time is up, Go before 1.27 may call that a failure (golang/go#75804).
FUZZTIME ?= 50000x
FUZZTIME_SLOW ?= 1000x

export GOFLAGS ?= -buildvcs=false

.PHONY: help
help: ## Show what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: deps
deps: ## Install the Debian packages that the tests need (as root)
	@contrib/vm/deps

.PHONY: deb
deb: ## Build the package, in dist
	contrib/deb/build $(VERSION)

.PHONY: demo
demo: deps deb ## Show a service keep its state while the kernel is replaced
	go run ./test/demo $(DEB)

.PHONY: test
test: deps vet test-unit test-fuzz test-vm ## Run all tests

.PHONY: vet
vet:
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo "run gofmt -w on these" >&2; exit 1; }
	go vet ./...
	go vet -tags vm,soak ./test
	@command -v mandoc > /dev/null || { echo 'install mandoc, or run "make deps" as root' >&2; exit 1; }
	mandoc -Tlint -Wwarning contrib/man/*
	@for page in contrib/man/*; do test "$$(mandoc -Tutf8 $$page | wc -l)" -gt 20 || { echo "$$page is not rendered" >&2; exit 1; }; done

.PHONY: test-unit
test-unit: deps ## Run the unit tests, with the race detector
	go test -race ./...

.PHONY: test-fuzz
test-fuzz: ## Run each fuzzer for FUZZTIME inputs
	@for dir in $$(grep -rl '^func Fuzz' --include='*_test.go' . | xargs -n 1 dirname | sort -u); do \
		fuzztime=$(FUZZTIME); [[ ! $$dir =~ ^./(kho/image|bridge/wire)$$ ]] || fuzztime=$(FUZZTIME_SLOW); \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\).*/\1/p' $$dir/*_test.go); do \
			echo "$$dir $$name"; \
			go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $$fuzztime $$dir; \
		done; \
	done

.PHONY: test-vm
test-vm: deps deb ## Run the scenarios in the VM; RUN= chooses some
	go test -tags vm -count 1 -v -timeout 75m -parallel 2 -run '$(RUN)' ./test -deb "$(CURDIR)/$(DEB)"

.PHONY: soak
soak: deps deb ## Go through 20 live updates with random units and faults; SOAK="-seed N -updates N"
	go test -tags vm,soak -count 1 -v -timeout 4h -parallel 2 -run '^(TestSoak|TestAThousandUnits|TestPreserveIsKilledAtEachStep|TestFaultsOfADelivery|TestKernelUpdate|TestKernelUpdateWithSystemd254|TestKernelUpdateWithSystemd262|TestServicesHaveSessionsOfTheirOwn|TestTheDeviceIsBusy)$$' ./test -deb "$(CURDIR)/$(DEB)" $(SOAK)

.PHONY: bench
bench: deps deb ## Measure in the VM what fdbridge takes of an update; BENCH="-runs N -least N -most N"
	go run ./test/bench -o dist/bench.md $(BENCH) $(DEB)

.PHONY: vm
vm: deps deb ## Boot the VM and log in as root
	go run ./internal/vm/vmctl boot -deb $(DEB)

.PHONY: clean
clean: ## Remove what was built here; the cache stays
	rm -rf dist
