.PHONY: nested test fuzz bench bench-quick generate lint

# Modules of their own, for what they depend on.
NESTED := gridotel gridprom gridmember gridstatus/browsertest

# Their names, for scripts.
nested:
	@echo $(NESTED)

test:
	go vet ./... && go test -race ./...
	@set -e; for m in $(NESTED); do echo "cd $$m && go vet ./... && go test -race ./..."; (cd $$m && go vet ./... && go test -race ./...); done

# Runs each fuzz target there is for FUZZTIME, and stops at the first that fails. The
# input that failed is then in testdata/fuzz of its package, to be run by go test.
FUZZTIME ?= 1m

fuzz:
	@set -e; n=0; \
	for pkg in $$(go list ./...); do \
		targets=$$(go test -list '^Fuzz' $$pkg); \
		for target in $$(echo "$$targets" | grep '^Fuzz' || true); do \
			echo "=== $$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$pkg || \
				{ echo "*** FAILED: $$target in $$pkg"; exit 1; }; \
			n=$$((n + 1)); \
		done; \
	done; \
	echo "=== $$n fuzz targets passed"; test $$n -gt 0

# Everything that docs/benchmarks shows: some minutes, on an otherwise idle machine.
bench:
	cd bench && go run .

bench-quick:
	cd bench && go run . -quick

generate:
	go generate ./...
	cd bench && go generate ./...

lint:
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	go build -C tools -o "$$tmp/staticcheck" honnef.co/go/tools/cmd/staticcheck; \
	for m in . bench $(NESTED); do \
		echo "cd $$m && go vet ./... && staticcheck ./..."; \
		(cd $$m && go vet ./... && "$$tmp/staticcheck" ./...); \
	done
