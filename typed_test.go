package grid_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

func TestTyped_Call(t *testing.T) {
	h := grid.NewSingleHandler(rig.Handler, func() *rpcRequest { return new(rpcRequest) }, func() *rpcResponse { return new(rpcResponse) })
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		answer := func(req *rpcRequest) (*rpcResponse, *grid.RemoteErr) {
			switch req.Num {
			case 1:
				return nil, nil
			case 2:
				return &rpcResponse{OrgNum: 2}, grid.NewRemoteErrString(req.String)
			}
			return &rpcResponse{OrgNum: req.Num, OrgString: req.String, Embedded: *req}, nil
		}
		require.NoError(t, h.Register(g.Manager(1), answer))
		require.NoError(t, h.Register(g.Manager(1), answer, "a", "b"))
		require.NoError(t, h.Register(g.Manager(0), answer), "and with another manager")
		require.ErrorIs(t, h.Register(g.Manager(1), answer, "a/b"), grid.ErrHandlerAlreadyExists)
		require.ErrorContains(t, h.Register(g.Manager(1), answer, ""), "empty subroute")
		require.ErrorContains(t, h.Register(g.Manager(1), nil, "c"), "nil handler")
		require.ErrorIs(t, grid.NewSingleHandler(0, grid.NewMSS, grid.NewMSS).Register(g.Manager(1), func(m *grid.MSS) (*grid.MSS, *grid.RemoteErr) { return m, nil }), grid.ErrUnknownHandler)

		for _, conn := range []grid.Requester{c, c.Subroute("a/b"), c.Subroute("a").Subroute("b"), g.Conn(1, 0)} {
			req := &rpcRequest{Num: 7, String: "seven"}
			resp, err := h.Call(t.Context(), conn, req)
			require.NoError(t, err)
			require.Equal(t, &rpcResponse{OrgNum: 7, OrgString: "seven", Embedded: *req}, resp)
			require.Equal(t, &rpcRequest{Num: 7, String: "seven"}, req, "the request stays the caller's")
			h.PutResponse(resp)

			resp, err = h.Call(t.Context(), conn, &rpcRequest{Num: 1})
			require.NoError(t, err)
			require.Nil(t, resp, "nil arrives as nil")

			resp, err = h.Call(t.Context(), conn, &rpcRequest{Num: 2, String: "failed"})
			require.Equal(t, grid.NewRemoteErrString("failed"), err)
			require.Nil(t, resp)
		}
	})
}

func TestTyped_CallOnNilConnections(t *testing.T) {
	h := grid.NewSingleHandler(rig.Handler, newFailing, newFailing)
	none := []grid.Requester{nil, (*grid.Connection)(nil), (*grid.Subroute)(nil), (*grid.Connection)(nil).Subroute("a")}
	for _, conn := range none {
		resp, err := h.Call(t.Context(), conn, &failing{Text: marshalPanic}) // is not looked at
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Nil(t, resp)
	}
	h = grid.NewSingleHandler(rig.Handler, newFailing, newFailing).IgnoreNilConn()
	for _, conn := range none {
		resp, err := h.Call(t.Context(), conn, &failing{Text: marshalPanic})
		require.NoError(t, err)
		require.Nil(t, resp)
	}
}

// standIn is a Requester of a test's own.
type standIn func(payload []byte) ([]byte, error)

func (s standIn) SingleRequest(_ context.Context, _ grid.HandlerID, payload []byte) ([]byte, error) {
	return s(payload)
}

func TestTyped_CallOverAStandIn(t *testing.T) {
	h := grid.NewSingleHandler(rig.Handler, grid.NewMSS, grid.NewMSS)
	resp, err := h.Call(t.Context(), standIn(func(b []byte) ([]byte, error) { return append([]byte(nil), b...), nil }), grid.NewMSSWith(map[string]string{"a": "b"}))
	require.NoError(t, err)
	require.Equal(t, "b", resp.Get("a"))
	_, err = h.Call(t.Context(), standIn(func([]byte) ([]byte, error) { return nil, rig.ErrCause }), grid.NewMSS())
	require.Equal(t, rig.ErrCause, err)
}

func TestTyped_CallUnencodableAndUndecodable(t *testing.T) {
	h := grid.NewSingleHandler(rig.Handler, newFailing, newFailing)
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		called := 0
		require.NoError(t, h.Register(g.Manager(1), func(req *failing) (*failing, *grid.RemoteErr) {
			called++
			return &failing{Text: req.Extra}, nil
		}))
		call := func(request, response string) error {
			resp, err := h.Call(t.Context(), c, &failing{Text: request, Extra: response})
			if err != nil {
				require.Nil(t, resp, "nothing half filled")
			}
			return err
		}
		require.NoError(t, call("fine", "fine"))
		called = 0

		// Requests: here, and there.
		for _, request := range []string{marshalError, marshalPanic} {
			err := call(request, "")
			rig.RequireKind(t, err, rig.IsNothingElse, request)
			require.ErrorContains(t, err, "grid: handler 100: request: encoding *grid_test.failing: ")
			require.ErrorContains(t, err, "failing")
		}
		require.ErrorIs(t, call(marshalError, ""), errFailing)
		for _, request := range []string{unmarshalError, unmarshalPanic} {
			err := call(request, "")
			rig.RequireKind(t, err, rig.IsRemote, request)
			require.ErrorContains(t, err, "grid: handler 100: request: decoding *grid_test.failing: ")
		}
		for _, garbage := range [][]byte{nil, {}, {0xc1}, {0xa5, 'x'}, append([]byte{0xa1, 'x'}, 0)} {
			_, err := c.SingleRequest(t.Context(), rig.Handler, garbage)
			rig.RequireKind(t, err, rig.IsRemote, fmt.Sprint(garbage))
		}
		require.Zero(t, called, "the handler is not called")

		// Responses: there, and here.
		for _, response := range []string{marshalError, marshalPanic} {
			err := call("fine", response)
			rig.RequireKind(t, err, rig.IsRemote, response)
			require.ErrorContains(t, err, "grid: handler 100: response: encoding *grid_test.failing: ")
		}
		for _, response := range []string{unmarshalError, unmarshalPanic} {
			err := call("fine", response)
			rig.RequireKind(t, err, rig.IsNothingElse, response)
			require.ErrorContains(t, err, "grid: handler 100: response: decoding *grid_test.failing: ")
		}
		require.ErrorIs(t, call("fine", unmarshalError), errFailing)
		_, err := grid.NewSingleHandler(rig.Echo, newFailing, grid.NewMSS).Call(t.Context(), c, &failing{Text: "a string, no map"})
		rig.RequireKind(t, err, rig.IsNothingElse, "another type")

		require.NoError(t, call("fine", "fine"))
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
	})
}

func TestTyped_HandlerPanic(t *testing.T) {
	h := grid.NewSingleHandler(rig.Handler, grid.NewBytes, grid.NewBytes)
	for name, bad := range rig.BadEnds {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			require.NoError(t, h.Register(g.Manager(1), func(*grid.Bytes) (*grid.Bytes, *grid.RemoteErr) { bad.End(); return nil, nil }))
			_, err := h.Call(t.Context(), c, grid.NewBytesWith(nil))
			rig.RequireKind(t, err, rig.IsRemote, name)
			require.ErrorContains(t, err, bad.Want)
			synctest.Wait()
			require.Zero(t, g.Conn(1, 0).Stats().Handlers)
		})
	}
}

// What grid is done with is recycled once, and nothing else is.
func TestTyped_CallRecyclesOnce(t *testing.T) {
	type result struct{ request, handlerRequest, handlerResponse, response int64 }
	for _, test := range []struct {
		name      string
		configure func(h *grid.SingleHandler[*counted, *counted])
		returns   string // the handler: "new", "request", "error", "nil"
		want      result
	}{
		{"default", nil, "new", result{0, 1, 1, 1}},
		{"handler fails", nil, "error", result{0, 1, 1, 0}},
		{"handler returns nil", nil, "nil", result{0, 1, 0, 0}},
		{"handler returns its request", nil, "request", result{0, 1, 0, 1}},
		{"shared response", func(h *grid.SingleHandler[*counted, *counted]) { h.WithSharedResponse() }, "new", result{0, 1, 0, 1}},
		{"shared response is the request", func(h *grid.SingleHandler[*counted, *counted]) { h.WithSharedResponse() }, "request", result{0, 0, 0, 1}},
		{"call may pool", func(h *grid.SingleHandler[*counted, *counted]) { h.AllowCallRequestPool(true) }, "new", result{1, 1, 1, 1}},
		{"call may pool, fails", func(h *grid.SingleHandler[*counted, *counted]) { h.AllowCallRequestPool(true) }, "error", result{1, 1, 1, 0}},
		{"call may not pool after all", func(h *grid.SingleHandler[*counted, *counted]) {
			h.AllowCallRequestPool(true).AllowCallRequestPool(false)
		}, "new", result{0, 1, 1, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var handlerRequest, handlerResponse, response atomic.Int64
			counting := func(times *atomic.Int64) func() *counted {
				return func() *counted { return &counted{failing{times: times}} }
			}
			// The two sides have handlers of their own, as two processes do.
			server := grid.NewSingleHandler(rig.Handler, counting(&handlerRequest), counting(nil))
			client := grid.NewSingleHandler(rig.Handler, counting(nil), counting(&response))
			if test.configure != nil {
				test.configure(server)
				test.configure(client)
			}
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				require.NoError(t, server.Register(g.Manager(1), func(req *counted) (*counted, *grid.RemoteErr) {
					switch test.returns {
					case "request":
						return req, nil
					case "nil":
						return nil, nil
					}
					resp := &counted{failing{Text: "response", times: &handlerResponse}}
					if test.returns == "error" {
						return resp, grid.NewRemoteErrString("failed")
					}
					return resp, nil
				}))
				req, request := newCounted("request")
				resp, err := client.Call(t.Context(), c, req)
				require.Equal(t, test.returns == "error", err != nil)
				require.Zero(t, response.Load(), "it is the caller's")
				client.PutResponse(resp)
				synctest.Wait()
				require.Equal(t, test.want, result{request.Load(), handlerRequest.Load(), handlerResponse.Load(), response.Load()})
			})
		})
	}
}

// A value that is pooled by the handler comes back empty, whatever its decoder leaves out.
func TestTyped_CallsNeverSeeOldContents(t *testing.T) {
	h := grid.NewSingleHandler(rig.Handler, newFailing, newFailing).AllowCallRequestPool(true)
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, h.Register(g.Manager(1), func(req *failing) (*failing, *grid.RemoteErr) {
			resp := h.NewResponse()
			if *resp != (failing{}) {
				return nil, grid.NewRemoteErrf("response %v", *resp)
			}
			resp.Text, resp.Extra = req.Text, req.Extra
			return resp, nil
		}))
		for i := range 200 {
			want := failing{Text: fmt.Sprint(i)}
			if i%2 == 0 {
				want.Extra = fmt.Sprint("secret ", i)
			}
			req := h.NewRequest()
			require.Equal(t, failing{}, *req)
			*req = want
			resp, err := h.Call(t.Context(), c, req)
			require.NoError(t, err)
			require.Equal(t, want, *resp)
			h.PutResponse(resp)
		}
	})
}

func TestTyped_ManyCallsAtOnceGiveEverythingBack(t *testing.T) {
	rpc := grid.NewSingleHandler(rig.Handler, func() *rpcRequest { return new(rpcRequest) }, func() *rpcResponse { return new(rpcResponse) }).AllowCallRequestPool(true)
	echo := grid.NewSingleHandler(rig.Handler+1, grid.NewBytes, grid.NewBytes)
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, rpc.Register(g.Manager(1), func(req *rpcRequest) (*rpcResponse, *grid.RemoteErr) {
			resp := rpc.NewResponse()
			resp.OrgNum, resp.OrgString, resp.Embedded = req.Num, req.String, *req
			return resp, nil
		}))
		require.NoError(t, echo.Register(g.Manager(1), func(req *grid.Bytes) (*grid.Bytes, *grid.RemoteErr) { return req, nil }))
		synctest.Wait()
		before := bytepool.Out()
		var callers sync.WaitGroup
		for caller := range 8 {
			callers.Go(func() {
				for i := range 100 {
					req := rpc.NewRequest()
					*req = rpcRequest{Num: i, String: fmt.Sprint(caller, " ", i)}
					want := *req
					resp, err := rpc.Call(t.Context(), c, req)
					if err != nil || resp.Embedded != want || resp.OrgString != want.String {
						t.Errorf("%v was answered %v, %v", want, resp, err)
						return
					}
					rpc.PutResponse(resp)

					b := grid.NewBytesWithCopyOf([]byte(want.String))
					answer, err := echo.Call(t.Context(), c, b)
					b.Recycle()
					if err != nil || string(*answer) != want.String {
						t.Errorf("%v was answered %v, %v", want, answer, err)
						return
					}
					echo.PutResponse(answer)
				}
			})
		}
		callers.Wait()
		synctest.Wait()
		require.Equal(t, before, bytepool.Out(), "all buffers are put back")
	})
}
