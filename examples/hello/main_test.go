package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHello_IsAnswered(t *testing.T) {
	answer, err := hello("world")
	require.NoError(t, err)
	require.Equal(t, "hello world", answer)
}

func Example_main() {
	main()
	// Output: hello world
}
