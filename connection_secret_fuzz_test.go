package grid

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/wsconn"
)

var fuzzKey = []byte("the key of the fuzzed hosts")

// editScripts are seeds: nothing, and one of each kind of edit.
func editScripts(f *testing.F) {
	f.Add([]byte{})
	for kind := range byte(8) {
		for _, at := range []byte{0, 1, 15, 16, 21, 22, 31, 32, 40, 63} {
			f.Add([]byte{kind, at, 1, 1})
			f.Add([]byte{kind, at, 16, 0})
			f.Add([]byte{kind, at, 255, 2, kind, at, 1, 1})
		}
	}
}

// edit alters a token or proof as a program says, with parts of what the same peer has been shown or
// has made for something else.
func edit(p *program, b []byte, others ...[]byte) []byte {
	b = bytes.Clone(b)
	for range 4 {
		if len(p.b) == 0 {
			break
		}
		kind := p.n(8)
		at := p.n(len(b) + 1)
		end := at + p.n(len(b)-at+1)
		part := bytes.Clone(b[at:end])
		switch kind {
		case 0: // alter
			for i := at; i < end; i++ {
				b[i] ^= byte(p.n(256))
			}
		case 1: // cut out
			b = slices.Delete(b, at, end)
		case 2: // repeat
			b = slices.Insert(b, end, part...)
		case 3: // swap
			b = slices.Concat(b[end:], part, b[:at])
		case 4: // insert
			b = slices.Insert(b, at, p.bytes(1+p.n(4))...)
		case 5: // put another's in the same place
			other := others[p.n(len(others))]
			copy(b[at:end], other[min(at, len(other)):])
		case 6: // all of another
			b = bytes.Clone(others[p.n(len(others))])
		case 7: // behind it
			b = append(b, others[p.n(len(others))][:p.n(8)]...)
		}
	}
	return b
}

// FuzzSecretResponse gives an acceptor with a SharedSecret the response of a peer that knows the
// key, altered. It must take what the peer has made and nothing else.
func FuzzSecretResponse(f *testing.F) {
	local, dials, dialled := handshakeHosts(f)
	editScripts(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) {
			o := testOptions(local, []string{local, dials, dialled})
			o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, [][]byte{fuzzKey}
			o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
			m, err := NewManager(t.Context(), o)
			require.NoError(t, err)
			defer m.Close()

			wire := newWire()
			w, r := upgradeTo(wire)
			pass := rawpeer.Pass(fuzzKey, dials, local, bubbleStart)
			r.Header.Set("Authorization", "Bearer "+pass)
			served := make(chan struct{})
			go func() {
				defer close(served)
				m.Handler()(w, r)
			}()
			synctest.Wait()
			challenge := challengeIn(t, wire)

			at := rawpeer.Meeting{Dialler: dials, Acceptor: local, Challenge: challenge, DiallerID: make([]byte, 16)}
			response := at.Response(fuzzKey)
			other := func(change func(m *rawpeer.Meeting)) []byte {
				at := at
				change(&at)
				return []byte(at.Response(fuzzKey))
			}
			p := &program{script}
			said := string(edit(p, []byte(response),
				other(func(m *rawpeer.Meeting) { m.Challenge = rawpeer.Nonce() }),
				other(func(m *rawpeer.Meeting) { m.Dialler, m.Acceptor = m.Acceptor, m.Dialler }),
				other(func(m *rawpeer.Meeting) { m.Dialler = dialled }),
				other(func(m *rawpeer.Meeting) { m.DiallerID = rawpeer.Nonce() }),
				[]byte(at.Response([]byte("a key of somebody else"))), []byte(pass),
				[]byte(rawpeer.NonceText(challenge)), []byte(rawpeer.NonceText(at.Proof(fuzzKey, response))),
			))
			hello := rawpeer.Connect{ID: make([]byte, 16), Host: dials, Time: bubbleStart, Token: said, To: local}
			wire.put(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()}.Encode(), true)
			<-served
			synctest.Wait()

			connected := m.Connection(dials).State() == StateConnected
			require.Equal(t, said == response, connected, "%q in place of %q", said, response)
			require.Equal(t, connected, !wire.isClosed())
			answers := wire.take(t)
			require.Len(t, answers, 1)
			answer, ok := understandConnectResponse(answers[0])
			require.True(t, ok)
			require.Equal(t, connected, answer.Accepted)
			if !connected {
				require.Contains(t, answer.Reason, "invalid token: ")
				require.Nil(t, answer.Proof)
				return
			}
			at.AcceptorID = m.ID[:]
			require.Equal(t, at.Proof(fuzzKey, response), answer.Proof)
		})
	})
}

// challengeIn takes the answer to an upgrade request from a wire, and the challenge from that.
func challengeIn(t *testing.T, w *wire) []byte {
	t.Helper()
	var b []byte
	w.set(func() { b = bytes.Clone(w.out) })
	w.forgetUpgrade(t)
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	challenge := rawpeer.ParseNonce(resp.Header.Get(rawpeer.ChallengeHeader))
	require.NotNil(t, challenge)
	return challenge
}

// FuzzSecretProof gives a dialler with a SharedSecret the proof of an acceptor that knows the key,
// altered. It must take what the acceptor has made and nothing else.
func FuzzSecretProof(f *testing.F) {
	local, _, dialled := handshakeHosts(f)
	editScripts(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) {
			o := testOptions(local, []string{local, dialled})
			o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, [][]byte{fuzzKey}
			o.BlockConnect = make(chan struct{}) // nobody dials
			m, err := NewManager(t.Context(), o)
			require.NoError(t, err)
			defer m.Close()

			wire := newWire()
			w, r := upgradeTo(wire)
			ws, err := wsconn.Upgrade(w, r, nil, handshakeLimit, bubbleStart.Add(time.Minute), m.traffic)
			require.NoError(t, err)
			wire.forgetUpgrade(t)
			challenge := rawpeer.Nonce()
			var greeted error
			done := make(chan struct{})
			go func() {
				defer close(done)
				header := http.Header{rawpeer.ChallengeHeader: {rawpeer.NonceText(challenge)}}
				_, greeted = m.Connection(dialled).greet(ws, header, &wsconn.DialOptions{}, m.opts.newProgress(m.ctx))
			}()
			synctest.Wait()
			said := wire.take(t)
			require.Len(t, said, 1)
			hello, ok := understandConnect(said[0])
			require.True(t, ok)

			id := m.ID
			at := rawpeer.Meeting{
				Dialler: local, Acceptor: dialled, Challenge: challenge, DiallerID: id[:], AcceptorID: make([]byte, 16),
			}
			proof := at.Proof(fuzzKey, hello.Token)
			other := func(change func(m *rawpeer.Meeting)) []byte {
				at := at
				change(&at)
				return at.Proof(fuzzKey, hello.Token)
			}
			shown := edit(&program{script}, proof,
				other(func(m *rawpeer.Meeting) { m.Challenge = rawpeer.Nonce() }),
				other(func(m *rawpeer.Meeting) { m.Dialler, m.Acceptor = m.Acceptor, m.Dialler }),
				other(func(m *rawpeer.Meeting) { m.Acceptor = "http://other:1" }),
				other(func(m *rawpeer.Meeting) { m.AcceptorID = rawpeer.Nonce() }),
				at.Proof(fuzzKey, at.Response(fuzzKey)), at.Proof([]byte("a key of somebody else"), hello.Token),
				[]byte(hello.Token), challenge,
			)
			wire.put(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{
				ID: make([]byte, 16), Accepted: true, Host: dialled, Proof: shown,
			}.Encode()}.Encode(), true)
			<-done
			if bytes.Equal(shown, proof) {
				require.NoError(t, greeted)
			} else {
				require.ErrorIs(t, greeted, errNoProof, "%x in place of %x: %v", shown, proof, greeted)
			}
			ws.Close()
		})
	})
}
