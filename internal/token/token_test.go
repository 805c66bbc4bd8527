package token

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	testKey  = []byte("0123456789abcdef")
	otherKey = []byte("fedcba9876543210 and more")
)

func newSecret(t testing.TB, keys ...[]byte) *Secret {
	s, err := New(keys...)
	require.NoError(t, err)
	return s
}

// meet has two hosts prove to each other what they know, and returns which steps have failed.
func meet(dialler, acceptor *Secret) (pass, response, proof error) {
	_, _, pass = acceptor.CheckPass(dialler.Pass("a", "b"), "b", time.Now())
	m := Meeting{Dialler: "a", Acceptor: "b", Challenge: NewNonce(), DiallerID: [16]byte{1}, AcceptorID: [16]byte{2}}
	r := dialler.Response(&m)
	response = acceptor.CheckResponse(&m, r)
	proof = dialler.CheckProof(&m, r, acceptor.Proof(&m, r))
	return pass, response, proof
}

func TestSecret_KeysAreRotatedWithoutDowntime(t *testing.T) {
	old, change, changed, done := [][]byte{testKey}, [][]byte{testKey, otherKey}, [][]byte{otherKey, testKey}, [][]byte{otherKey}
	// Hosts are a step apart at most.
	for _, step := range [][2][][]byte{{old, old}, {old, change}, {change, changed}, {changed, done}, {done, done}} {
		for _, pair := range [][2][][]byte{step, {step[1], step[0]}} {
			pass, response, proof := meet(newSecret(t, pair[0]...), newSecret(t, pair[1]...))
			require.NoError(t, pass)
			require.NoError(t, response)
			require.NoError(t, proof)
		}
	}
	pass, response, proof := meet(newSecret(t, old...), newSecret(t, done...))
	require.ErrorIs(t, pass, ErrKey)
	require.ErrorIs(t, response, ErrKey)
	require.ErrorIs(t, proof, ErrKey)
}

func TestSecret_RefusesUnusableKeys(t *testing.T) {
	for want, keys := range map[string][][]byte{
		"no key":             nil,
		"key 1 has 15 bytes": {testKey[:15]},
		"key 2 has 0 bytes":  {testKey, nil},
	} {
		_, err := New(keys...)
		require.ErrorContains(t, err, want)
	}
}

func TestSecret_CopiesItsKeys(t *testing.T) {
	key := bytes.Clone(testKey)
	s := newSecret(t, key)
	clear(key)
	pass, _, _ := meet(s, newSecret(t, testKey))
	require.NoError(t, pass)
}

func TestPass_SaysWhoDials(t *testing.T) {
	s := newSecret(t, testKey)
	for _, name := range []string{"", "a", "https://node1:9000", strings.Repeat("x", 300)} {
		pass := s.Pass(name, "b")
		dialler, nonce, err := s.CheckPass(pass, "b", time.Now())
		require.NoError(t, err)
		require.Equal(t, name, dialler)
		_, other, err := s.CheckPass(s.Pass(name, "b"), "b", time.Now())
		require.NoError(t, err)
		require.NotEqual(t, nonce, other)
	}
}

// Wherever one name ends and the next begins, they are those that were signed.
func TestPass_IsGoodForOneAcceptor(t *testing.T) {
	s := newSecret(t, testKey)
	pass := s.Pass("http://a", "http://b")
	for _, other := range []string{"", "http://c", "http://a", "http://b:81", "https://b", "http://bb", "ahttp://b"} {
		_, _, err := s.CheckPass(pass, other, time.Now())
		require.ErrorIs(t, err, ErrKey, other)
	}
}

func TestPass_LivesForFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSecret(t, testKey)
		pass := s.Pass("a", "b")
		made := time.Now().Truncate(time.Second)
		for age, good := range map[time.Duration]bool{
			0: true, Life: true, Life + time.Second: false, 24 * time.Hour: false,
			-Life: true, -Life - time.Second: false, -24 * time.Hour: false,
		} {
			_, _, err := s.CheckPass(pass, "b", made.Add(age))
			if good {
				require.NoError(t, err, age)
			} else {
				require.ErrorIs(t, err, ErrTime, age)
			}
		}
	})
}

func TestPass_ThatWasNotSignedIsRefused(t *testing.T) {
	s := newSecret(t, testKey)
	pass := s.Pass("http://a", "b")
	for _, bad := range []string{
		"", "x", pass[1:], pass + "A", strings.Repeat("A", len(pass)), strings.Repeat("=", len(pass)),
		strings.Repeat("A", 1<<20), pass + "\n", pass[:len(pass)-4],
	} {
		_, _, err := s.CheckPass(bad, "b", time.Now())
		require.Error(t, err)
		require.Less(t, len(err.Error()), 100)
	}
	raw, err := base64.RawURLEncoding.DecodeString(pass)
	require.NoError(t, err)
	for bit := range 8 * len(raw) {
		forged := bytes.Clone(raw)
		forged[bit/8] ^= 1 << (bit % 8)
		_, _, err := s.CheckPass(base64.RawURLEncoding.EncodeToString(forged), "b", time.Now())
		require.ErrorIs(t, err, ErrKey)
	}
}

// Response and proof are good for the meeting that they were made for and for no other, whatever it
// is in which that differs.
func TestMeeting_IsAllThatResponseAndProofAreGoodFor(t *testing.T) {
	s := newSecret(t, testKey)
	m := Meeting{Dialler: "http://a", Acceptor: "http://b", Challenge: NewNonce(), DiallerID: [16]byte{1}, AcceptorID: [16]byte{2}}
	response := s.Response(&m)
	proof := s.Proof(&m, response)
	require.NoError(t, s.CheckResponse(&m, response))
	require.NoError(t, s.CheckProof(&m, response, proof))

	for name, change := range map[string]func(*Meeting){
		"dialler":    func(m *Meeting) { m.Dialler = "http://c" },
		"acceptor":   func(m *Meeting) { m.Acceptor = "http://c" },
		"both ways":  func(m *Meeting) { m.Dialler, m.Acceptor = m.Acceptor, m.Dialler },
		"boundary":   func(m *Meeting) { m.Dialler, m.Acceptor = "http://ah", "ttp://b" },
		"challenge":  func(m *Meeting) { m.Challenge = NewNonce() },
		"dialler ID": func(m *Meeting) { m.DiallerID[0]++ },
	} {
		other := m
		change(&other)
		require.ErrorIs(t, s.CheckResponse(&other, response), ErrKey, name)
		require.ErrorIs(t, s.CheckProof(&other, response, proof), ErrKey, name)
	}
	other := m
	other.AcceptorID[0]++
	require.ErrorIs(t, s.CheckProof(&other, response, proof), ErrKey)

	require.NotEqual(t, response, s.Response(&m))
	require.ErrorIs(t, s.CheckProof(&m, s.Response(&m), proof), ErrKey)
	for _, bad := range [][]byte{nil, {}, proof[1:], append(bytes.Clone(proof), 0)} {
		require.ErrorIs(t, s.CheckProof(&m, response, bad), ErrKey)
	}
}

// What one side shows is nothing that the other could show.
func TestMeeting_NothingStandsForAnother(t *testing.T) {
	s := newSecret(t, testKey)
	m := Meeting{Dialler: "a", Acceptor: "b", Challenge: NewNonce()}
	response, pass := s.Response(&m), s.Pass("a", "b")
	require.Error(t, s.CheckResponse(&m, pass))
	_, _, err := s.CheckPass(response, "b", time.Now())
	require.Error(t, err)
	raw, err := base64.RawURLEncoding.DecodeString(response)
	require.NoError(t, err)
	require.ErrorIs(t, s.CheckProof(&m, response, raw[nonceSize:]), ErrKey)
	proof := s.Proof(&m, response)
	require.ErrorIs(t, s.CheckResponse(&m, base64.RawURLEncoding.EncodeToString(append(raw[:nonceSize:nonceSize], proof...))), ErrKey)
}

func TestNonce_IsReadBack(t *testing.T) {
	n := NewNonce()
	got, err := ParseNonce(n.String())
	require.NoError(t, err)
	require.Equal(t, n, got)
	for _, bad := range []string{"", "x", n.String()[1:], n.String() + "A", " " + n.String()} {
		_, err := ParseNonce(bad)
		require.ErrorIs(t, err, ErrForm)
	}
}

// No text but a pass is good, and none for another acceptor.
func FuzzPass(f *testing.F) {
	f.Add("", uint16(3), byte(1), "a", "b")
	f.Add(strings.Repeat("A", 75), uint16(40), byte(0x80), "http://a", "http://b")
	f.Fuzz(func(t *testing.T, text string, at uint16, flip byte, dialler, acceptor string) {
		s := newSecret(t, testKey, otherKey)
		_, _, err := s.CheckPass(text, acceptor, time.Now())
		require.Error(t, err)
		require.Error(t, s.CheckResponse(&Meeting{Dialler: dialler, Acceptor: acceptor}, text))
		pass := []byte(s.Pass(dialler, acceptor))
		changed := bytes.Clone(pass)
		changed[int(at)%len(changed)] ^= flip
		_, _, err = s.CheckPass(string(changed), acceptor, time.Now())
		require.Equal(t, bytes.Equal(pass, changed), err == nil)
		_, _, err = s.CheckPass(string(pass), acceptor+"x", time.Now())
		require.ErrorIs(t, err, ErrKey)
	})
}

// What is signed is the same in all versions: else two of them could not meet.
func TestSecret_SignsWhatTheProtocolSays(t *testing.T) {
	hash := func(text string) []byte {
		h := hmac.New(sha256.New, testKey)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	s := newSecret(t, testKey)
	const id1, id2 = "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	head := "\x00\x00\x00\x00\x00\x00\x00" // of a length below 256

	pass, err := base64.RawURLEncoding.DecodeString(s.Pass("aa", "b"))
	require.NoError(t, err)
	signed, got := string(pass[:26]), pass[26:]
	require.Equal(t, "aa", signed[24:])
	require.Equal(t, hash("grid pass 2\x00"+head+"\x1a"+signed+head+"\x01b"), got)

	m := Meeting{Dialler: "aa", Acceptor: "b", Challenge: NewNonce(), DiallerID: [16]byte{1}, AcceptorID: [16]byte{2}}
	text := s.Response(&m)
	response, err := base64.RawURLEncoding.DecodeString(text)
	require.NoError(t, err)
	challenge := head + "\x10" + string(m.Challenge[:])
	require.Equal(t, hash("grid response 2\x00"+challenge+head+"\x10"+string(response[:16])+head+"\x02aa"+head+"\x01b"+head+"\x10"+id1), response[16:])
	require.Equal(t, hash("grid proof 2\x00"+challenge+head+"\x40"+text+head+"\x02aa"+head+"\x01b"+head+"\x10"+id1+head+"\x10"+id2), s.Proof(&m, text))
}

// The example of the protocol is one, so that other implementations can hold theirs to it.
func TestSecret_ExampleOfTheProtocol(t *testing.T) {
	const (
		pass     = "AAAAAGVT8QAgISIjJCUmJygpKissLS4vaHR0cDovLzEyNy4wLjAuMTo5MDAxQ2-ci7hVQVCyB5QbCVQ8ZeUVzzfd-yUqp4ZytDwcTRs"
		response = "QEFCQ0RFRkdISUpLTE1OTxUPHm5iOdgDbSY62vnXsIei0uFYXojPjNG11rt7zvrO"
		proof    = "4c07873b2b1965c9ab419e3c0bfde653083a569916fbbeb52e55e67d14a833e9"
	)
	doc, err := os.ReadFile("../../docs/protocol.md")
	require.NoError(t, err)
	for _, text := range []string{pass, response, proof} {
		require.Contains(t, string(doc), "  "+text)
	}
	s := newSecret(t, []byte("0123456789abcdef"))
	m := Meeting{Dialler: "http://127.0.0.1:9001", Acceptor: "http://127.0.0.1:9002"}
	for i := range 16 {
		m.Challenge[i], m.DiallerID[i], m.AcceptorID[i] = byte(0x30+i), byte(1+i), byte(0x11+i)
	}
	require.Contains(t, string(doc), "  "+m.Challenge.String())
	dialler, nonce, err := s.CheckPass(pass, m.Acceptor, time.Unix(1700000000, 0))
	require.NoError(t, err)
	require.Equal(t, m.Dialler, dialler)
	require.EqualValues(t, 0x20, nonce[0])
	require.NoError(t, s.CheckResponse(&m, response))
	require.Equal(t, proof, hex.EncodeToString(s.Proof(&m, response)))
}
