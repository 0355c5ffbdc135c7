// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// queueTimeout bounds how long a client waits until few enough other
// deliveries are under way, which is most of the time when all units of a
// large machine start at once. It is told every 20 s that it has to.
const queueTimeout = 10 * time.Minute

// turn waits until no delivery is under way to, or of what is held for, any of the
// units named, and returns what ends the turn. All take turns in one order, so
// that none waits for one that waits for it.
func (s *Server) turn(ctx context.Context, names ...string) (done func(), err error) {
	var taken []chan struct{}
	done = func() {
		for _, turn := range taken {
			<-turn
		}
	}
	slices.Sort(names)
	for _, unit := range slices.Compact(names) {
		s.mu.Lock()
		turn := s.turns[unit]
		if turn == nil {
			turn = make(chan struct{}, 1)
			s.turns[unit] = turn
		}
		s.mu.Unlock()
		select {
		case turn <- struct{}{}:
			taken = append(taken, turn)
		case <-ctx.Done():
			done()
			return nil, fmt.Errorf("another delivery to %s is under way: %w", unit, context.Cause(ctx))
		}
	}
	return done, nil
}

// take takes the turn for the parcel that is to be delivered to a unit now; done
// ends it. p is nil when there is none. With an error it is the one that another
// delivery is in the way of.
func (s *Server) take(ctx context.Context, c *claims) (p *holding, done func(), err error) {
	for {
		if p = s.Holder.claimed(c); p == nil {
			return nil, func() {}, nil
		}
		if done, err = s.turn(ctx, c.unit, p.Unit); err != nil {
			return p, nil, err
		}
		now := s.Holder.claimed(c)
		if now == nil || now.Unit == p.Unit {
			return now, done, nil
		}
		done() // it is another one's turn now
	}
}

// queue waits until few enough deliveries are under way, first come, first
// served, and returns what lets the next one begin. A delivery that hangs is in the
// way of others until its bound.
func (s *Server) queue(ctx context.Context, conn *wire.Conn) (leave func(), err error) {
	leave = func() { <-s.slots }
	select {
	case s.slots <- struct{}{}:
		return leave, nil
	default:
	}
	ctx, stop := context.WithTimeoutCause(ctx, queueTimeout, fmt.Errorf("others were to be delivered to before it for %v", queueTimeout))
	defer stop()
	told := make(chan error, 1)
	go func() { told <- s.tellToWait(ctx, conn, stop) }()
	select {
	case s.slots <- struct{}{}:
		stop()
		if err = <-told; err != nil {
			leave()
		}
	case <-ctx.Done():
		err = cmp.Or(<-told, context.Cause(ctx))
	}
	return leave, err
}

// tellToWait tells a client that it has to wait until ctx ends, and calls gone
// when that cannot be told, because the client does not wait any more.
func (s *Server) tellToWait(ctx context.Context, conn *wire.Conn, gone func()) error {
	ticker := time.NewTicker(s.WaitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := conn.Send(wire.Grant{Wait: true, Error: "it is the turn of others yet"}, nil); err != nil {
			gone()
			return err
		}
	}
}
