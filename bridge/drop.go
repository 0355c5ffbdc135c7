// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"slices"
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
	sessions := s.dropSessions(unit)
	parcels, err := s.dropParcels(ctx, unit)
	if err == nil && parcels == 0 {
		err = s.Holder.Known(ctx, unit)
	}
	if err == nil && parcels == 0 && !sessions {
		err = fmt.Errorf("nothing is held for %s", unit)
	}
	return err
}

// dropParcels lets go of the parcels that are held for a unit, and returns how many there
// were when no delivery to it was under way.
func (s *Server) dropParcels(ctx context.Context, unit string) (int, error) {
	if len(s.Holder.Held(unit)) == 0 {
		return 0, nil
	}
	done, err := s.turn(ctx, unit)
	if err != nil {
		return 0, err
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
	sessions := s.Holder.unclaimed()
	for _, unit := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(sessions, s.Holder.Units())))) {
		s.expire(ctx, unit, slices.Contains(sessions, unit), timeout)
	}
}

// expire drops what is held for a unit, and its sessions when it has claimed none.
func (s *Server) expire(ctx context.Context, unit string, sessions bool, timeout time.Duration) {
	ctx, stop := context.WithTimeout(ctx, grantTimeout)
	defer stop()
	dropped := sessions && s.dropSessions(unit)
	parcels, err := s.dropParcels(ctx, unit)
	switch {
	case err != nil:
		s.Holder.Problem(journal.About{Unit: unit}, "%s: It has not claimed its fds within HoldTimeoutSec=%v, and they are not dropped: %v", unit, timeout, err)
	case dropped || parcels > 0:
		s.Log.WarningOf(journal.About{Kind: journal.Dropped, Unit: unit}, "%s: It has not claimed its fds within HoldTimeoutSec=%v; they are dropped.", unit, timeout)
	}
}
