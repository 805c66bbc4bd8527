// Command hello is about the smallest program that uses grid: two servers in one process, of which
// one asks the other.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/gridrpc/grid"
)

const greet grid.HandlerID = 1

func main() {
	answer, err := hello("world")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer)
}

// register registers what a server answers, before anybody can ask it.
func register(m *grid.Manager) error {
	return m.RegisterSingleHandler(greet, func(name []byte) ([]byte, *grid.RemoteErr) {
		return fmt.Appendf(nil, "hello %s", name), nil
	})
}

func hello(name string) (string, error) {
	var listeners [2]net.Listener
	hosts := make([]string, 2)
	for i := range hosts {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		defer l.Close()
		listeners[i], hosts[i] = l, "http://"+l.Addr().String()
	}
	secret := []byte("a key that all servers share")
	var servers [2]*grid.Manager
	for i, host := range hosts {
		m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
			Local: host, Hosts: hosts, SharedSecret: [][]byte{secret}, Register: register,
		})
		if err != nil {
			return "", err
		}
		defer m.Close()
		go m.Serve(context.Background(), listeners[i], grid.ServeOptions{}) // until m is closed
		servers[i] = m
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn := servers[0].Connection(hosts[1])
	if err := conn.WaitForConnect(ctx); err != nil {
		return "", err
	}
	answer, err := conn.SingleRequest(ctx, greet, []byte(name))
	return string(answer), err
}
