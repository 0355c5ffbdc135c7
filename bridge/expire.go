// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/journal"
)

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
		s.Log.WarningOf(journal.About{Kind: journal.Dropped, Unit: unit}, "%s: It has not claimed its fds within HoldTimeoutSec=%v; they are dropped.", unit, timeout)
		bounded, stop := context.WithTimeout(ctx, grantTimeout)
		if err := s.dropUnit(bounded, unit); err != nil {
			s.Holder.Problem(journal.About{Unit: unit}, "%s: %v", unit, err)
		}
		stop()
	}
}
