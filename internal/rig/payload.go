package rig

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Mixed is n bytes in which no part looks like another.
func Mixed(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

// RequireSame is require.Equal for what is too large to be printed.
func RequireSame(t testing.TB, want, got []byte, what ...any) {
	t.Helper()
	require.Equal(t, len(want), len(got), what...)
	require.True(t, bytes.Equal(want, got), what...)
}

const SlowRate = 1 << 20 // bytes per second of a slow link

// Promptly is how long something small may take beside something large, on a slow link: what is
// being written must be, and what waits before it.
const Promptly = PendingLimit * time.Second / SlowRate
