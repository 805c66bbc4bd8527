package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/gridrpc/grid/bench/internal/echopb"
)

// overloadPeers are the ways to serve under overload of those peers that take part: with the limit
// that an operator would set, and what else there is. overloadLooks says what they are.
func (r *run) overloadPeers() []peer {
	return slices.DeleteFunc(overloadPeers(), func(p peer) bool {
		of, _, _ := strings.Cut(p.name, "-")
		return !r.has(of)
	})
}

// overloadPeers are those of all peers.
func overloadPeers() []peer {
	variant := func(p peer, name string, serve func(config) (server, error)) peer {
		p.name, p.serve = name, serve
		return p
	}
	return []peer{
		gridPeer(),
		variant(gridPeer(), "grid-default", func(c config) (server, error) {
			c.limit = 0
			return gridServe(c)
		}),
		variant(grpcPeer(), "grpc-tap", func(c config) (server, error) {
			return grpcServe(c, grpcWork(c), grpcTap(c.limit))
		}),
		variant(grpcPeer(), "grpc-streams", func(c config) (server, error) {
			return grpcServe(c, grpcWork(c), grpc.MaxConcurrentStreams(uint32(c.limit)))
		}),
		variant(grpcPeer(), "grpc-default", func(c config) (server, error) { return grpcServe(c, grpcWork(c)) }),
	}
}

// grpcWork works before the handler does, and ends what grpcTap has counted.
func grpcWork(c config) grpc.ServerOption {
	return grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if release, ok := ctx.Value(grpcSlot{}).(func()); ok {
			defer release()
		}
		c.work()
		return handler(ctx, req)
	})
}

type grpcSlot struct{}

// grpcTap refuses calls beyond a limit. It runs where they arrive; an interceptor alone would only
// count the handlers that have had a core by then.
func grpcTap(limit int) grpc.ServerOption {
	var underway atomic.Int64
	return grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) {
		if underway.Add(1) > int64(limit) {
			underway.Add(-1)
			return ctx, status.Error(codes.ResourceExhausted, "too many calls")
		}
		release := sync.OnceFunc(func() { underway.Add(-1) })
		context.AfterFunc(ctx, release) // not every call comes to its interceptor
		return context.WithValue(ctx, grpcSlot{}, release), nil
	})
}

func (c grpcCaller) work(ctx context.Context, payload []byte) error {
	p, err := c.client.Echo(ctx, &echopb.Payload{Data: payload})
	switch status.Code(err) {
	case codes.OK:
		return checkEcho(len(p.GetData()), len(payload))
	case codes.ResourceExhausted:
		return errRefused
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	return fmt.Errorf("work: %w", err)
}
