package rawpeer

import (
	"time"
)

// Frame is a websocket frame of a peer; one that was dialled does not mask.
func (p *Peer) Frame(first byte, length uint64, payload []byte) []byte {
	b := []byte{first}
	var mask byte
	if p.Request == nil {
		mask = 0x80
	}
	switch {
	case length < 126:
		b = append(b, mask|byte(length))
	case length < 1<<16:
		b = append(b, mask|126, byte(length>>8), byte(length))
	default:
		b = append(b, mask|127)
		for shift := 56; shift >= 0; shift -= 8 {
			b = append(b, byte(length>>shift))
		}
	}
	if mask != 0 {
		b = append(b, 0, 0, 0, 0) // of zeros, so that it changes nothing
	}
	return append(b, payload...)
}

const (
	FrameContinued = 0x00
	FrameBinary    = 0x02
	FramePing      = 0x09
	FrameFinal     = 0x80
)

// TryWrite writes bytes to the socket itself.
func (p *Peer) TryWrite(b []byte) error {
	p.writing <- struct{}{}
	defer func() { <-p.writing }()
	if err := p.WS.SetWriteDeadline(time.Now().Add(p.Timeout)); err != nil {
		return err
	}
	_, err := p.WS.NetConn().Write(b)
	return err
}
