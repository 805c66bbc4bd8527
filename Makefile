.PHONY: nested test test-long fuzz bench bench-quick generate lint

# Modules of their own, for what they depend on.
NESTED := gridotel gridprom gridmember gridraft examples/kv gridstatus/browsertest

# Their names, for scripts.
nested:
	@echo $(NESTED)

# What a change must pass before all else, with the race detector: some four minutes.
test:
	tools/test short

# Everything, at full depth.
test-long:
	tools/test long

# For FUZZTIME each, 1m by default, FUZZJOBS at a time.
fuzz:
	tools/fuzz

# Everything that docs/benchmarks shows, and what docs/performance.md quotes of it: some 20 minutes,
# on an otherwise idle machine.
bench:
	cd bench && go run . && go test -run TestPerformanceDocument . -update

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
