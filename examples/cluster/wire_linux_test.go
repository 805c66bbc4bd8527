package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// impairment is what happens to packets, in each direction. The zero value is a good link.
type impairment struct {
	delay, jitter time.Duration
	loss          int // percent
}

// netem is what tc calls it.
func (i impairment) netem() string {
	how := fmt.Sprintf("netem loss %d%%", i.loss)
	if i.delay > 0 {
		how += fmt.Sprintf(" delay %dms %dms", i.delay.Milliseconds(), i.jitter.Milliseconds())
	}
	return how
}

// wire joins two interfaces by carrying packets from each to the other, and impairs them as netem
// does, for a kernel without that.
type wire struct {
	ends     [2]*os.File // packet sockets
	impaired atomic.Pointer[impairment]
	carrying sync.WaitGroup
}

func newWire(ns *netns, a, b string) (*wire, error) {
	w := &wire{}
	w.impaired.Store(&impairment{})
	for i, name := range []string{a, b} {
		err := ns.do(func() (err error) {
			w.ends[i], err = openPackets(name)
			return err
		})
		if err != nil {
			w.close()
			return nil, fmt.Errorf("packet socket on %s: %w", name, err)
		}
	}
	w.carrying.Go(func() { w.carry(w.ends[0], w.ends[1]) })
	w.carrying.Go(func() { w.carry(w.ends[1], w.ends[0]) })
	return w, nil
}

func (w *wire) close() {
	for _, f := range w.ends {
		f.Close() // does nothing for nil
	}
	w.carrying.Wait()
}

func (w *wire) carry(from, to *os.File) {
	buf := make([]byte, 128<<10) // twice the largest that segmentation is left to
	for {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		how := w.impaired.Load()
		switch {
		case err != nil || rand.IntN(100) < how.loss:
		case how.delay == 0:
			to.Write(buf[:n]) // what does not go out is lost, as on any wire
		default:
			packet := append([]byte(nil), buf[:n]...)
			late := how.delay
			if how.jitter > 0 {
				late += rand.N(2*how.jitter) - how.jitter
			}
			time.AfterFunc(late, func() { to.Write(packet) })
		}
	}
}

// Of linux/if_packet.h, and not in package syscall.
const (
	packetVnetHdr        = 15
	packetIgnoreOutgoing = 23
)

// openPackets opens a socket for all packets that come in at an interface. It reads and writes them
// with the header that says what of checksums and segmentation is still to be done: between two
// virtual interfaces nobody does it.
func openPackets(name string) (*os.File, error) {
	all := binary.NativeEndian.Uint16([]byte{0, syscall.ETH_P_ALL}) // in network order
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	// Protocol 0 hears nothing, until it is bound to the interface.
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_PACKET, packetVnetHdr, 1),
		syscall.SetsockoptInt(fd, syscall.SOL_PACKET, packetIgnoreOutgoing, 1),
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 4<<20),
		syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}),
	)
	f := os.NewFile(uintptr(fd), name)
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
