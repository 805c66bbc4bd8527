package chaos

import (
	"context"
	"errors"
	"slices"

	"github.com/gridrpc/grid"
)

// many makes a call to several hosts: to all of them at once, or to one after the other until one
// takes it.
func (c *client) many(first *call) error {
	m := c.cluster.model
	numbers := m.beginMany(hosts + 1) // for each host, and for all
	defer func() {
		for i := range uint64(hosts + 1) {
			m.end(numbers + i)
		}
	}()
	first.call, first.id = numbers, typedSingle
	first.traits = first.traits&^isTagged | toMany
	asked := c.rng.Perm(hosts)
	asked = slices.DeleteFunc(asked, func(i int) bool { return i == c.from })[:2+c.rng.IntN(hosts-2)]
	calls := make([]*call, len(asked))
	conns := make([]grid.Requester, len(asked))
	oneWill := c.rng.IntN(3) == 0
	if oneWill {
		first.traits |= toAny
		first.id = single
	}
	payload := first.encode(c.size())
	for i, to := range asked {
		sub := &call{note: first.note, what: "one of many requests", id: first.id, over: first.over, calm: first.calm, ctx: first.ctx}
		sub.call, sub.to = numbers+uint64(to), uint8(to)
		sub.conn = c.cluster.nodes[c.from].life.Load().Connection(c.cluster.names[to])
		sub.largest = max(len(payload), int(first.size))
		calls[i], conns[i] = sub, first.requesterOver(sub.conn)
		m.beginCall(sub)
	}
	m.tally.calls.Add(1)
	if oneWill {
		return c.retry(first, calls, conns, payload)
	}
	req := grid.NewBytesWith(payload)
	defer req.Recycle()
	_, err := intercepted(func() (struct{}, error) {
		if c.calm || c.rng.IntN(2) == 0 {
			return struct{}{}, c.each(first, calls, conns, req)
		}
		return struct{}{}, c.quorum(first, calls, conns, req)
	})
	return err
}

// each asks all hosts, and sometimes breaks off.
func (c *client) each(first *call, calls []*call, conns []grid.Requester, req *grid.Bytes) (last error) {
	m := c.cluster.model
	most := len(conns)
	if !c.calm && c.rng.IntN(4) == 0 {
		most = 1 + c.rng.IntN(most)
	}
	answered := make([]bool, len(conns))
	came := 0
	for a := range typedCall.CallEach(first.ctx, conns, req) {
		if answered[a.Index] || a.Conn != conns[a.Index] {
			m.violation("%v: an answer twice, or of somebody else", calls[a.Index])
		}
		answered[a.Index] = true
		came++
		c.judgeAnswer(calls[a.Index], a)
		last = a.Err
		if came == most {
			break
		}
	}
	if came != most {
		m.violation("%d of %d answers came of %v", came, most, first)
	}
	return last
}

// judgeAnswer checks one of many answers.
func (c *client) judgeAnswer(call *call, a grid.Answer[*grid.Bytes]) {
	m := c.cluster.model
	m.tally.asked.Add(1)
	m.judge(call, a.Err)
	if a.Err != nil {
		m.failed(call)
		return
	}
	if err := call.follows(*a.Value, true, 0); err != nil {
		m.violation("the answer to %v: %v", call, err)
	}
	typedCall.PutResponse(a.Value)
}

// quorum asks all hosts, of which some must answer.
func (c *client) quorum(first *call, calls []*call, conns []grid.Requester, req *grid.Bytes) error {
	m := c.cluster.model
	need := 1 + c.rng.IntN(len(conns))
	answers, err := typedCall.CallQuorum(first.ctx, need, conns, req)
	seen := make([]bool, len(conns))
	for _, a := range answers {
		if seen[a.Index] {
			m.violation("%v: two answers of one host", calls[a.Index])
		}
		seen[a.Index] = true
		c.judgeAnswer(calls[a.Index], a)
	}
	failed := new(grid.QuorumError)
	switch {
	case err == nil:
		if len(answers) != need {
			m.violation("%d answers make a quorum of %d", len(answers), need)
		}
	case errors.As(err, &failed):
		if failed.Cause != nil {
			c.judgeContext(first, err)
		}
		if failed.Need != need || failed.Of != len(conns) || len(answers) >= need ||
			failed.Cause == nil && len(failed.Errs) <= len(conns)-need ||
			len(failed.Errs)+len(answers)+len(failed.Unanswered) != len(conns) {
			m.violation("%d of %d have failed, and %d answered: %v", len(failed.Errs), len(conns), len(answers), err)
		}
		if grid.CanRetry(err) {
			m.violation("a quorum may be asked again: %v", err)
		}
	default:
		c.judgeContext(first, err)
	}
	return err
}

// judgeContext checks an error that is of no host.
func (c *client) judgeContext(first *call, err error) {
	if first.ctx.Err() == nil || !errors.Is(err, first.ctx.Err()) {
		c.cluster.model.violation("%v ended with %v, its context with %v", first, err, context.Cause(first.ctx))
	}
}

// retry asks one host after the other, of which one runs the call at most.
func (c *client) retry(first *call, calls []*call, conns []grid.Requester, payload []byte) error {
	m := c.cluster.model
	r, err := grid.NewRetrier(grid.RetryOptions{Budget: 1}, conns...)
	if err != nil {
		m.violation("a Retrier: %v", err)
		return err
	}
	answer, err := intercepted(func() ([]byte, error) { return r.SingleRequest(first.ctx, single, payload) })
	defer grid.PutByteBuffer(answer)
	grid.PutByteBuffer(payload)
	if stats := r.Stats(); stats.Retries > 0 && err == nil {
		m.tally.retried.Add(1)
	}
	if grid.CanRetry(err) {
		if m.mark(first.call+hosts, isRefused)&runsMask > 0 {
			m.violation("%v ran, and ended with %v", first, err)
		}
	}
	if err == nil {
		n, err := decode(answer)
		i := slices.IndexFunc(calls, func(call *call) bool { return call.call == n.call })
		if err != nil || i < 0 {
			m.violation("the answer to %v: %v, %+v", first, err, n)
			return nil
		}
		if err := calls[i].follows(answer, true, 0); err != nil {
			m.violation("the answer to %v: %v", calls[i], err)
		}
		m.judge(calls[i], nil)
		return nil
	}
	// It is that of one of the hosts, or of the context.
	if first.ctx.Err() != nil && errors.Is(err, first.ctx.Err()) {
		m.tally.ended.Add(1)
		return err
	}
	var reasons []string
	for _, call := range calls {
		count, reason := m.outcome(call, err)
		if reason == "" {
			count.Add(1)
			return err
		}
		reasons = append(reasons, reason)
	}
	m.violation("%v, to any of %d hosts, ended with %T %q: %q", first, len(calls), err, err, reasons)
	return err
}
