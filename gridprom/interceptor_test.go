package gridprom

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

func TestPromInterceptor_ResultsAreListed(t *testing.T) {
	remote := grid.CallResult{Err: grid.NewRemoteErrString("no")}
	require.Equal(t, remoteError, resultOf(remote, false))
	require.Equal(t, handlerError, resultOf(remote, true))
	for _, served := range []bool{false, true} {
		for _, err := range []error{
			nil, remote.Err, grid.ErrDisconnected, grid.ErrOverloaded, context.DeadlineExceeded, context.Canceled,
			grid.ErrMessageTooLarge, grid.ErrProtocol, errors.New("what else"),
		} {
			require.Contains(t, results(served), resultOf(grid.CallResult{Err: err}, served))
		}
		require.Len(t, results(served), 9, "one for each")
	}
}

// Whatever handlers are called, calls go on and scrapes succeed.
func TestPromInterceptor_NamesThatAreNotUTF8(t *testing.T) {
	i := NewInterceptor()
	for _, name := range []string{"a\xff", "", "a\"b\n"} {
		_, end, err := i.InterceptCall(t.Context(), &grid.CallInfo{Name: name})
		require.NoError(t, err)
		end(grid.CallResult{Duration: time.Second})
	}
	c := &collector{stats: func() grid.ManagerStats {
		return grid.ManagerStats{Connections: []grid.ConnectionStats{{HostName: "http://a\xff"}}}
	}, handlers: noHandlers}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(i, c)
	_, err := reg.Gather()
	require.NoError(t, err)
	require.Equal(t, 3, testutil.CollectAndCount(i, "grid_handler_duration_seconds"))
}

func TestPromInterceptor_Buckets(t *testing.T) {
	observe := func(opts ...Option) (classic int, native bool) {
		i := NewInterceptor(opts...)
		_, end, err := i.InterceptServe(t.Context(), &grid.CallInfo{Name: "x"})
		require.NoError(t, err)
		end(grid.CallResult{Duration: time.Second})
		reg := prometheus.NewRegistry()
		reg.MustRegister(i.duration)
		families, err := reg.Gather()
		require.NoError(t, err)
		h := families[0].GetMetric()[0].GetHistogram()
		return len(h.GetBucket()), len(h.GetPositiveSpan()) > 0
	}
	for _, tt := range []struct {
		opts []Option
		want int
	}{
		{nil, len(DefaultBuckets())},
		{[]Option{WithBuckets(1, 2)}, 2},
		{[]Option{WithBuckets()}, 0},
	} {
		classic, native := observe(tt.opts...)
		require.Equal(t, tt.want, classic)
		require.True(t, native)
	}
	for _, bad := range [][]float64{{2, 1}, {1, 1}, {math.NaN()}, {1, math.NaN()}} {
		require.Panics(t, func() { NewInterceptor(WithBuckets(bad...)) }, "%v", bad)
	}
}

func TestPromInterceptor_DoesNotAllocate(t *testing.T) {
	i, info := NewInterceptor(), &grid.CallInfo{Name: "x"}
	ctx := context.Background()
	run := func() {
		_, end, _ := i.InterceptCall(ctx, info)
		end(grid.CallResult{Duration: time.Second, SentBytes: 1})
	}
	run()
	require.Zero(t, testing.AllocsPerRun(1000, run))
}
