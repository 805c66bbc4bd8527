package rawpeer

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

// ConnectError is the payload of MuxConnectError.
func ConnectError(text string) []byte {
	b := msgp.AppendMapHeader(nil, 1)
	return msgp.AppendString(msgp.AppendString(b, "Error"), text)
}

// DecodeConnectError returns its text.
func DecodeConnectError(b []byte) (text string, _ error) {
	r := &Reader{Bytes: b}
	found := false
	r.fields(func(key string) bool {
		if key != "Error" {
			return false
		}
		text, found = Read(r, msgp.ReadStringBytes), true
		return true
	})
	if err := r.End(); err != nil {
		return "", err
	}
	if !found {
		return "", fmt.Errorf("no text in %q", b)
	}
	return text, nil
}

// ConnectErrorText is DecodeConnectError for tests.
func ConnectErrorText(t testing.TB, payload []byte) string {
	t.Helper()
	text, err := DecodeConnectError(payload)
	require.NoError(t, err)
	return text
}

// PongPayload is that of a stream's pong now, of an end that knows no such stream, or has the error
// text of its end.
func PongPayload(notFound bool, text ...string) []byte {
	b := msgp.AppendMapHeader(nil, 3)
	b = msgp.AppendBool(msgp.AppendString(b, "nf"), notFound)
	b = msgp.AppendString(b, "e")
	if len(text) > 0 {
		b = msgp.AppendString(b, text[0])
	} else {
		b = msgp.AppendNil(b)
	}
	return msgp.AppendTime(msgp.AppendString(b, "t"), time.Now())
}
