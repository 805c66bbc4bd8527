package grid

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSubroute_OfNoConnectionIsSafeToUse(t *testing.T) {
	for _, s := range []*Subroute{nil, (*Connection)(nil).Subroute("disk"), (*Subroute)(nil).Subroute("1")} {
		_, err := s.SingleRequest(t.Context(), 1, nil)
		require.Equal(t, ErrDisconnected, err)
		_, err = s.NewStream(t.Context(), 1, nil)
		require.Equal(t, ErrDisconnected, err)
		require.Equal(t, ErrDisconnected, s.WaitForConnect(t.Context()))
		require.Equal(t, StateUnconnected, s.State())
		require.Zero(t, s.Stats())
		require.Empty(t, s.String())
	}
}
