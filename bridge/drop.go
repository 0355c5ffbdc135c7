// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// drop answers OpDrop. Whoever can open the socket is root.
func (s *Server) drop(ctx context.Context, conn *wire.Conn, unit string) error {
	bounded, stop := context.WithTimeout(ctx, grantTimeout)
	defer stop()
	if err := s.outcome(ctx, conn, s.dropUnit(bounded, unit)); err != nil {
		return err
	}
	return conn.Send(wire.Answer{End: true}, nil)
}

func (s *Server) dropUnit(ctx context.Context, unit string) error {
	dropped := s.dropSessions(unit)
	if len(s.Holder.Held(unit)) == 0 {
		if err := s.Holder.Known(ctx, unit); err != nil || dropped {
			return err
		}
		return fmt.Errorf("nothing is held for %s", unit)
	}
	done, err := s.turn(ctx, unit)
	if err != nil {
		return err
	}
	defer done()
	return s.Holder.Drop(unit)
}

// dropSessions lets go of what came for a unit, and tells whether there was anything.
func (s *Server) dropSessions(unit string) bool {
	n := s.Holder.dropServices(unit)
	if n > 0 {
		if err := s.Holder.Keeper.Barrier(); err != nil { // or the next fdbridged might have them again
			s.Holder.Remains(err)
		}
		s.Log.InfoOf(journal.About{Kind: journal.Dropped, Unit: unit}, "%s: Dropped %d sessions of its own.", unit, n)
	}
	return n > 0
}

// Expire drops what no unit has claimed when timeout has passed since the
// kernel was started; ctx ends the wait.
func (s *Server) Expire(ctx context.Context, timeout time.Duration) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		s.Holder.Problem(journal.About{}, "HoldTimeoutSec= cannot be kept, what is held is held on: %v", err)
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(timeout - time.Duration(now.Nano())):
	}
	for _, unit := range s.Holder.unclaimed() {
		bounded, stop := context.WithTimeout(ctx, grantTimeout)
		err := s.dropUnit(bounded, unit)
		stop()
		if err != nil {
			s.Holder.Problem(journal.About{Unit: unit}, "%s: It has not claimed its fds within HoldTimeoutSec=%v, and they are not dropped: %v", unit, timeout, err)
			continue
		}
		s.Log.WarningOf(journal.About{Kind: journal.Dropped, Unit: unit}, "%s: It has not claimed its fds within HoldTimeoutSec=%v; they are dropped.", unit, timeout)
	}
}
