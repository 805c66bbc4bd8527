.PHONY: test bench bench-quick generate lint

test:
	go vet ./... && go test -race ./...

# Everything that docs/benchmarks shows: some minutes, on an otherwise idle machine.
bench:
	cd bench && go run .

bench-quick:
	cd bench && go run . -quick

generate:
	go generate ./...
	cd bench && go generate ./...

lint:
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
