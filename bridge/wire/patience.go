// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// RestartTimeout bounds how long a fdbridged that has crashed is waited for.
	RestartTimeout = 10 * time.Second
	// AbsentTimeout does so for one that has taken its socket away: one that was
	// stopped, and may be started again at once, as when it is updated, or not at all.
	AbsentTimeout = 3 * time.Second
	// RetryDelay is between two tries.
	RetryDelay = 20 * time.Millisecond
)

// Patience is that of one who waits for the next fdbridged. The zero value has all of it.
type Patience struct {
	broken, absent time.Time // since when; zero when it is not
}

// Wait waits for RetryDelay after an error of a connection, to try again. It returns that
// error when it is time to give up, or when ctx ends.
func (p *Patience) Wait(ctx context.Context, err error) error {
	now := time.Now()
	if p.broken.IsZero() {
		p.broken = now
	}
	switch gone := errors.Is(err, unix.ENOENT); {
	case !gone:
		p.absent = time.Time{}
	case p.absent.IsZero(): // it may be just binding its socket anew
		p.absent = now
	}
	if now.Sub(p.broken) > RestartTimeout || !p.absent.IsZero() && now.Sub(p.absent) > AbsentTimeout {
		return err
	}
	select {
	case <-ctx.Done():
		return errors.Join(err, context.Cause(ctx))
	case <-time.After(RetryDelay):
		return nil
	}
}
