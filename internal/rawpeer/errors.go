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

// ErrorDetails is the payload of an error with FlagDetails.
type ErrorDetails struct {
	Text, Code string
	Wraps      []string
}

// Encode leaves out Code and Wraps where they are empty.
func (d ErrorDetails) Encode() []byte {
	keys := uint32(1)
	if d.Code != "" {
		keys++
	}
	if len(d.Wraps) > 0 {
		keys++
	}
	b := msgp.AppendMapHeader(nil, keys)
	b = msgp.AppendString(msgp.AppendString(b, "Error"), d.Text)
	if d.Code != "" {
		b = msgp.AppendString(msgp.AppendString(b, "Code"), d.Code)
	}
	if len(d.Wraps) > 0 {
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "Wraps"), uint32(len(d.Wraps)))
		for _, text := range d.Wraps {
			b = msgp.AppendString(b, text)
		}
	}
	return b
}

// DecodeErrorDetails reads it.
func DecodeErrorDetails(b []byte) (d ErrorDetails, _ error) {
	r := &Reader{Bytes: b}
	r.fields(func(key string) bool {
		switch key {
		case "Error":
			d.Text = Read(r, msgp.ReadStringBytes)
		case "Code":
			d.Code = Read(r, msgp.ReadStringBytes)
		case "Wraps":
			for range Read(r, msgp.ReadArrayHeaderBytes) {
				if d.Wraps = append(d.Wraps, Read(r, msgp.ReadStringBytes)); r.Err != nil {
					break
				}
			}
		default:
			return false
		}
		return true
	})
	return d, r.End()
}
