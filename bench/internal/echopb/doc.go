// Package echopb is one service in the generated code of four libraries: gRPC,
// Connect, DRPC and ttrpc. Their messages are the same.
package echopb

//go:generate go run -C tools . .. echo.proto
