.PHONY: test bench generate lint

test:
	go vet ./... && go test -race ./...

bench:
	go test -run '^$$' -bench . -timeout 60m .

generate:
	go generate ./...

lint:
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
