package clip

import (
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/seed"
)

func TestText_LongOnesAreCutBetweenCharacters(t *testing.T) {
	for _, short := range []string{"", "x", strings.Repeat("x", Most), strings.Repeat("\x80", Most)} {
		require.Equal(t, short, Text(short))
		require.Equal(t, short, Bytes([]byte(short)))
	}
	random := seed.Rand(t)
	for range 2000 {
		c := []string{"x", "é", "€", "🙂", "\x80", "\xff", "\xf0\x80"}[random.IntN(7)]
		s := strings.Repeat("x", random.IntN(5)) + strings.Repeat(c, Most+random.IntN(Most))
		got := Text(s)
		require.Equal(t, got, Bytes([]byte(s)))
		require.LessOrEqual(t, len(got), Most)
		require.Greater(t, len(got), Most-8)
		require.True(t, strings.HasPrefix(s, strings.TrimSuffix(got, mark)))
		require.True(t, utf8.ValidString(got) || !utf8.ValidString(s), "%q", got)
	}
}

func TestError_LongOnesLoseTheRest(t *testing.T) {
	require.NoError(t, Error(nil))
	require.Equal(t, io.EOF, Error(io.EOF))
	long := Error(errors.New(strings.Repeat("x", 1<<20)))
	require.Len(t, long.Error(), Most)
}

func TestName_IsQuoted(t *testing.T) {
	require.Equal(t, `"a\nb"`, Name("a\nb"))
	require.Equal(t, `"`+strings.Repeat("x", maxName)+`"...`, Name(strings.Repeat("x", 1<<20)))
}
