package grid

import (
	"context"
	"maps"
)

// callOptions are what a caller says of one call, or of all that it makes in one way; nil for nothing.
type callOptions struct {
	// metadata goes with the call. It is not changed.
	metadata map[string]string
}

// ownMetadata is the metadata for interceptors, which may add to it.
func (o *callOptions) ownMetadata() map[string]string {
	if o == nil {
		return nil
	}
	return maps.Clone(o.metadata)
}

// encodeMetadata is the metadata as it travels.
func (o *callOptions) encodeMetadata() ([]byte, error) {
	if o == nil {
		return nil, nil
	}
	return encodeMetadata(o.metadata)
}

// Metadata returns the key and value pairs that came with a call: those that its caller gave it, and
// those of interceptors, which take the place of the caller's under the same key. ctx is that of a
// handler of a stream, or of a single request that has one, or derived from it; for any other, and
// where there are none, it is nil. The map is the caller's own; it is made anew by each call.
//
// Metadata is at most 2048 bytes as it travels (protocol section 8, extension 8). A caller of version
// 1 sends none. It is what the caller's host says: no more to be trusted than the payload.
func Metadata(ctx context.Context) map[string]string {
	c, ok := ctx.Value(handlerContextKey{}).(*handlerContext)
	if !ok || c.metadata == nil {
		return nil
	}
	m, _ := decodeMetadata(c.metadata) // was checked before the handler ran
	return m
}
