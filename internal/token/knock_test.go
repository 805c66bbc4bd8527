package token

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The pass of a knock is that of an upgrade in all but its kind, and of no use as one, nor the
// reverse.
func TestKnockPass_IsOfAKindOfItsOwn(t *testing.T) {
	s, err := New([]byte("0123456789abcdef"))
	require.NoError(t, err)
	const from, to = "http://a:1", "http://b:2"
	knock, pass := s.KnockPass(from, to), s.Pass(from, to)
	now := time.Now()
	name, nonce, err := s.CheckKnockPass(knock, to, now)
	require.NoError(t, err)
	require.Equal(t, from, name)
	require.NotZero(t, nonce)
	for _, err := range []error{
		second(s.CheckPass(knock, to, now)),
		second(s.CheckKnockPass(pass, to, now)),
		second(s.CheckKnockPass(knock, from, now)),
		second(s.CheckKnockPass(knock, "http://c:3", now)),
	} {
		require.ErrorIs(t, err, ErrKey)
	}
	require.ErrorIs(t, second(s.CheckKnockPass(knock, to, now.Add(Life+time.Minute))), ErrTime)
	require.ErrorIs(t, second(s.CheckKnockPass(knock[:8], to, now)), ErrForm)
}

func second(_ string, _ Nonce, err error) error { return err }
