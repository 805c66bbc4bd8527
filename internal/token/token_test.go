package token

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// newPair returns what makes and what checks tokens with keys.
func newPair(keys ...[]byte) (sign func() string, validate func(string) error) {
	s := New(keys...)
	return s.Sign, func(token string) error { return s.Check(token, time.Now()) }
}

var (
	testKey  = []byte("0123456789abcdef")
	otherKey = []byte("fedcba9876543210 and more")
)

func TestSecret_TokenIsGoodOnce(t *testing.T) {
	sign, validate := newPair(testKey)
	token := sign()
	require.NoError(t, validate(token))
	require.ErrorIs(t, validate(token), ErrUsed)
	require.NotEqual(t, token, sign())
	require.NoError(t, validate(sign()))

	// At another manager it is good, once.
	_, elsewhere := newPair(testKey)
	require.NoError(t, elsewhere(token))
	require.ErrorIs(t, elsewhere(token), ErrUsed)
}

func TestSecret_TokenLivesForFiveMinutes(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		good bool
	}{{0, true}, {5 * time.Minute, true}, {5*time.Minute + time.Second, false}, {-5 * time.Minute, true}, {-5*time.Minute - time.Second, false}} {
		synctest.Test(t, func(t *testing.T) {
			sign, _ := newPair(testKey)
			_, validate := newPair(testKey)
			token := sign()
			if c.age < 0 { // the other clock is ahead
				s := New(testKey)
				time.Sleep(-c.age)
				token = sign()
				// Looked at by a clock that is behind.
				made := time.Now()
				err := s.Check(token, made.Add(c.age))
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
func TestSecret_TokenIsNotGoodAgainAfterAnyTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(testKey)
		for range 20 {
			made := time.Now()
			token := s.Sign()
			used := made.Add(-Life) // by a clock that is as far behind as may be
			require.NoError(t, s.Check(token, used))
			for at := used; !at.After(made.Add(2 * Life)); at = at.Add(7 * time.Second) {
				require.Error(t, s.Check(token, at))
			}
			time.Sleep(37 * time.Second)
		}
	})
}

func TestSecret_KeysAreRotatedWithoutDowntime(t *testing.T) {
	old, change, changed, done := [][]byte{testKey}, [][]byte{testKey, otherKey}, [][]byte{otherKey, testKey}, [][]byte{otherKey}
	// Hosts are a step apart at most.
	for _, step := range [][2][][]byte{{old, change}, {change, changed}, {changed, done}} {
		for _, pair := range [][2][][]byte{step, {step[1], step[0]}} {
			sign, _ := newPair(pair[0]...)
			_, validate := newPair(pair[1]...)
			require.NoError(t, validate(sign()))
		}
	}
	sign, _ := newPair(old...)
	_, validate := newPair(done...)
	require.ErrorIs(t, validate(sign()), ErrKey)
}

func TestSecret_RefusesWhatItDidNotSign(t *testing.T) {
	sign, validate := newPair(testKey)
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
		require.ErrorIs(t, validate(base64.RawURLEncoding.EncodeToString(forged)), ErrKey)
	}
	require.NoError(t, validate(token), "none of these has used it up")
}

func TestSecret_WithAShortKeyLetsNobodyIn(t *testing.T) {
	for culprit, keys := range map[string][][]byte{
		"without a key":                      nil,
		"key 1 of SharedSecret has 15 bytes": {testKey[:15]},
		"key 2 of SharedSecret has 0 bytes":  {testKey, nil},
	} {
		sign, validate := newPair(keys...)
		require.Empty(t, sign())
		good, _ := newPair(testKey)
		for _, token := range []string{"", sign(), good()} {
			require.ErrorContains(t, validate(token), culprit)
		}
	}
}

func TestSecret_CopiesItsKeys(t *testing.T) {
	key := bytes.Clone(testKey)
	sign, _ := newPair(key)
	clear(key)
	_, validate := newPair(testKey)
	require.NoError(t, validate(sign()))
}

func TestSecret_RemembersABoundedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(testKey)
		now := time.Now()
		for i := range MaxUsed {
			require.NoError(t, s.use(now, now.Unix(), [nonceSize]byte{byte(i), byte(i >> 8), byte(i >> 16)}))
		}
		require.ErrorIs(t, s.Check(s.Sign(), time.Now()), ErrTooMany)
		time.Sleep(2 * Life)
		require.NoError(t, s.Check(s.Sign(), time.Now()))
		require.Equal(t, 1, s.n)
		require.Len(t, s.seen, 1)
	})
}

// Hosts whose clocks differ connect all the time, and each is let in as long as its tokens are
// good, whatever the others' clocks say and whatever has been forgotten meanwhile.
func TestSecret_LetsInWhoseClockIsWrongByLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(testKey)
		for range 40 {
			now := time.Now()
			for _, off := range []time.Duration{0, Life, -Life, Life - time.Second, -Life + time.Second} {
				require.NoError(t, s.Check(signedAt(testKey, now.Add(off)), now), "off by %v at %v", off, now)
			}
			time.Sleep(61 * time.Second)
		}
	})
}

// signedAt is a token that was made at another time, by what it is documented to be.
func signedAt(key []byte, at time.Time) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(at.Unix()))
	b = append(b, make([]byte, 16)...)
	rand.Read(b[8:])
	h := hmac.New(sha256.New, key)
	h.Write([]byte("grid token 1\x00"))
	h.Write(b)
	return base64.RawURLEncoding.EncodeToString(h.Sum(b))
}

// Where the clock of the one who checks is set back, what it has forgotten is not good once more,
// however far back: be it the last that was forgotten, or one of several that went at once.
func TestSecret_UsedTokenIsNotGoodAgainWhereTheClockIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 { // what is forgotten at once is so in any order
			s := New(testKey)
			var tokens []string
			var made []time.Time
			for range 30 {
				tokens, made = append(tokens, s.Sign()), append(made, time.Now())
				require.NoError(t, s.Check(tokens[len(tokens)-1], time.Now()))
				time.Sleep(20 * time.Second)
			}
			time.Sleep(3 * Life)
			require.NoError(t, s.Check(s.Sign(), time.Now()))
			require.Len(t, s.seen, 1, "all others are forgotten")
			for i, token := range tokens {
				require.ErrorIs(t, s.Check(token, made[i]), ErrTime)
			}
		}
	})
}

func TestSecret_IsSafeForConcurrentUse(t *testing.T) {
	sign, validate := newPair(testKey)
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

// FuzzCheck: no text but a token is good, and none is good twice.
func FuzzCheck(f *testing.F) {
	sign, _ := newPair([]byte("a key that nobody has"))
	f.Add(sign(), uint16(0), byte(0))
	f.Add("", uint16(3), byte(1))
	f.Add(strings.Repeat("A", 75), uint16(40), byte(0x80))
	f.Fuzz(func(t *testing.T, text string, at uint16, flip byte) {
		sign, validate := newPair(testKey, otherKey)
		require.Error(t, validate(text))
		token := []byte(sign())
		changed := bytes.Clone(token)
		changed[int(at)%len(changed)] ^= flip
		good := bytes.Equal(token, changed)
		require.Equal(t, good, validate(string(changed)) == nil)
		require.Equal(t, !good, validate(string(token)) == nil)
	})
}
