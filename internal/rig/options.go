package rig

import (
	"errors"
	"log/slog"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// Token is what a host of any grid shows.
const Token = "token"

// Options are for one of hosts, with a silent log.
func Options(local string, hosts []string) grid.ManagerOptions {
	return grid.ManagerOptions{
		Local:  local,
		Hosts:  hosts,
		AuthFn: func() string { return Token },
		AuthToken: func(token string) error {
			if token != Token {
				return errors.New("wrong token")
			}
			return nil
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// WithSecret replaces the tokens of Options by a shared secret.
func WithSecret(o *grid.ManagerOptions, keys ...[]byte) {
	o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, keys
}

// DefaultsTold is what a host tells of its options in the handshake where they have their defaults.
var DefaultsTold = rawpeer.Told{MaxSize: 32 << 20, StreamPing: 15_000, MaxPings: 24_704}
