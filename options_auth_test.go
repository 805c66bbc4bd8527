package grid

import (
	"bytes"
	"encoding/base64"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	testKey  = []byte("0123456789abcdef")
	otherKey = []byte("fedcba9876543210 and more")
)

func TestSharedSecretTokenIsGoodOnce(t *testing.T) {
	sign, validate := SharedSecret(testKey)
	token := sign()
	require.NoError(t, validate(token))
	require.ErrorIs(t, validate(token), errTokenUsed)
	require.NotEqual(t, token, sign())
	require.NoError(t, validate(sign()))

	// At another manager it is good, once.
	_, elsewhere := SharedSecret(testKey)
	require.NoError(t, elsewhere(token))
	require.ErrorIs(t, elsewhere(token), errTokenUsed)
}

func TestSharedSecretTokenLivesForFiveMinutes(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		good bool
	}{{0, true}, {5 * time.Minute, true}, {5*time.Minute + time.Second, false}, {-5 * time.Minute, true}, {-5*time.Minute - time.Second, false}} {
		synctest.Test(t, func(t *testing.T) {
			sign, _ := SharedSecret(testKey)
			_, validate := SharedSecret(testKey)
			token := sign()
			if c.age < 0 { // the other clock is ahead
				s := &secret{keys: [][]byte{testKey}}
				time.Sleep(-c.age)
				token = sign()
				// Looked at by a clock that is behind.
				made := time.Now()
				err := s.check(token, made.Add(c.age))
				require.Equal(t, c.good, err == nil, "%v: %v", c.age, err)
				return
			}
			time.Sleep(c.age)
			err := validate(token)
			require.Equal(t, c.good, err == nil, "%v: %v", c.age, err)
		})
	}
}

// As long as a token is good, it is remembered that it was used.
func TestSharedSecretTokenIsNotGoodAgainAfterAnyTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &secret{keys: [][]byte{testKey}}
		for range 20 {
			made := time.Now()
			token := s.sign()
			used := made.Add(-tokenLife) // by a clock that is as far behind as may be
			require.NoError(t, s.check(token, used))
			for at := used; !at.After(made.Add(2 * tokenLife)); at = at.Add(7 * time.Second) {
				require.Error(t, s.check(token, at))
			}
			time.Sleep(37 * time.Second)
		}
	})
}

func TestSharedSecretKeysAreRotatedWithoutDowntime(t *testing.T) {
	old, change, changed, done := [][]byte{testKey}, [][]byte{testKey, otherKey}, [][]byte{otherKey, testKey}, [][]byte{otherKey}
	// Hosts are a step apart at most.
	for _, step := range [][2][][]byte{{old, change}, {change, changed}, {changed, done}} {
		for _, pair := range [][2][][]byte{step, {step[1], step[0]}} {
			sign, _ := SharedSecret(pair[0]...)
			_, validate := SharedSecret(pair[1]...)
			require.NoError(t, validate(sign()))
		}
	}
	sign, _ := SharedSecret(old...)
	_, validate := SharedSecret(done...)
	require.ErrorIs(t, validate(sign()), errTokenKey)
}

func TestSharedSecretRefusesWhatItDidNotSign(t *testing.T) {
	sign, validate := SharedSecret(testKey)
	token := sign()
	for _, bad := range []string{"", "x", token[1:], token + "A", strings.Repeat("A", len(token)), strings.Repeat("=", len(token)), strings.Repeat("A", 1<<20), token + "\n"} {
		err := validate(bad)
		require.Error(t, err)
		require.Less(t, len(err.Error()), 100)
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	require.NoError(t, err)
	for bit := range 8 * len(raw) {
		forged := bytes.Clone(raw)
		forged[bit/8] ^= 1 << (bit % 8)
		require.ErrorIs(t, validate(base64.RawURLEncoding.EncodeToString(forged)), errTokenKey)
	}
	require.NoError(t, validate(token), "none of these has used it up")
}

func TestSharedSecretWithAShortKeyLetsNobodyIn(t *testing.T) {
	for culprit, keys := range map[string][][]byte{
		"without a key":                      nil,
		"key 1 of SharedSecret has 15 bytes": {testKey[:15]},
		"key 2 of SharedSecret has 0 bytes":  {testKey, nil},
	} {
		sign, validate := SharedSecret(keys...)
		require.Empty(t, sign())
		good, _ := SharedSecret(testKey)
		for _, token := range []string{"", sign(), good()} {
			require.ErrorContains(t, validate(token), culprit)
		}
	}
}

func TestSharedSecretCopiesItsKeys(t *testing.T) {
	key := bytes.Clone(testKey)
	sign, _ := SharedSecret(key)
	clear(key)
	_, validate := SharedSecret(testKey)
	require.NoError(t, validate(sign()))
}

func TestSharedSecretRemembersABoundedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &secret{keys: [][]byte{testKey}}
		now := time.Now()
		for i := range maxNonces {
			require.NoError(t, s.use(now, now.Unix(), [nonceSize]byte{byte(i), byte(i >> 8), byte(i >> 16)}))
		}
		require.ErrorIs(t, s.validate(s.sign()), errTokensTooMany)
		time.Sleep(2 * tokenLife)
		require.NoError(t, s.validate(s.sign()))
		require.Equal(t, 1, s.n)
		require.Len(t, s.seen, 1)
	})
}

func TestSharedSecretIsConcurrent(t *testing.T) {
	sign, validate := SharedSecret(testKey)
	token := sign()
	var wg sync.WaitGroup
	good := make(chan error, 8)
	for range cap(good) {
		wg.Go(func() {
			for range 100 {
				if err := validate(sign()); err != nil {
					t.Error(err)
				}
			}
			good <- validate(token)
		})
	}
	wg.Wait()
	close(good)
	n := 0
	for err := range good {
		if err == nil {
			n++
		}
	}
	require.Equal(t, 1, n)
}
