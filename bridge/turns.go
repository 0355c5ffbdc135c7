// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/units"
)

// queueTimeout bounds how long a client waits until its delivery begins, most of which it
// does until few enough others are under way when all units of a large machine start at
// once. It is told every 20 s that it has to.
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

// admit waits until what is held may be delivered to a unit: it is known what that is, no
// other delivery is in the way of it, it is the client's turn, and PID 1 has answered. p
// and d are nil when nothing is held. leave is to be called when the delivery has ended,
// with an error, too.
func (s *Server) admit(ctx context.Context, conn *wire.Conn, to *applicant) (p *holding, d *delivery, leave func(), err error) {
	leave = func() {}
	err = s.meanwhile(ctx, conn, func(ctx context.Context) (err error) {
		if p, leave, err = s.take(ctx, s.claimsOf(to.unit)); err != nil || p == nil {
			return err
		}
		next, err := s.queue(ctx)
		if err != nil {
			return err
		}
		done := leave
		leave = func() { next(); done() }
		return answered(ctx, func(ctx context.Context) error {
			d, err = s.permit(ctx, to, p)
			return err
		})
	})
	return p, d, leave, err
}

// meanwhile tells a client that it has to wait while something is done, of which ctx ends
// after QueueTimeout, or when the client has gone.
func (s *Server) meanwhile(ctx context.Context, conn *wire.Conn, do func(ctx context.Context) error) error {
	if err := limit(ctx, conn, waitTimeout); err != nil {
		return err
	}
	ctx, stop := context.WithTimeoutCause(ctx, s.QueueTimeout, fmt.Errorf("it was not its turn within %v", s.QueueTimeout))
	defer stop()
	told := s.tellToWait(conn, stop)
	err := do(ctx)
	return cmp.Or(told(), err)
}

// answered does what PID 1 is asked for, until it answers: it may not while it starts all
// units of a boot.
func answered(ctx context.Context, do func(ctx context.Context) error) error {
	for {
		bounded, stop := context.WithTimeout(ctx, grantTimeout)
		err := do(bounded)
		stop()
		if !errors.Is(err, units.ErrManager) {
			return err
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
			return err
		}
	}
}

// take takes the turn for the parcel that is to be delivered to a unit now; done
// ends it. p is nil when there is none. With an error it is the one that another
// delivery is in the way of, or nil when it is not known what is held.
func (s *Server) take(ctx context.Context, c *claims) (p *holding, done func(), err error) {
	none := func() {}
	ctx, stop := context.WithTimeout(ctx, grantTimeout)
	defer stop()
	if s.Holder.claimed(c) == nil {
		if err := s.Holder.Known(ctx, c.names()...); err != nil {
			return nil, none, err
		}
	}
	for {
		if p = s.Holder.claimed(c); p == nil {
			return nil, none, nil
		}
		if err := s.Holder.behind(p); err != nil {
			return p, none, fmt.Errorf("what it has stored last cannot be had yet, which \"systemctl restart fdbridged.service\" tries again: %w", err)
		}
		if done, err = s.turn(ctx, c.unit, p.Unit); err != nil {
			return p, none, err
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
func (s *Server) queue(ctx context.Context) (next func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// tellToWait tells a client again and again that it has to wait, until told is called,
// and calls gone when that cannot be told, because the client does not wait any more, which
// told returns. No goroutine waits for the time: there may be thousands of clients.
func (s *Server) tellToWait(conn *wire.Conn, gone func()) (told func() error) {
	var mu sync.Mutex
	var timer *time.Timer // nil at the end
	var failed error
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(s.WaitInterval, func() {
		mu.Lock()
		defer mu.Unlock()
		if timer == nil {
			return
		}
		if failed = conn.Send(wire.Grant{Wait: true, Error: "it is the turn of others yet"}, nil); failed != nil {
			gone()
			return
		}
		timer.Reset(s.WaitInterval)
	})
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
		timer = nil
		return failed
	}
}
