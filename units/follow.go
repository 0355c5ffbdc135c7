// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"fmt"
	"time"
)

// followPause is how long Follow waits before it asks again.
const followPause = 50 * time.Millisecond

// Follow asks PID 1 about a service until that is as wanted, which it has to be
// within atMost.
func (r *Reader) Follow(ctx context.Context, unit string, atMost time.Duration, wanted func(s Service) bool) error {
	ctx, stop := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("%s has taken longer than %v", unit, atMost))
	defer stop()
	for {
		s, err := r.Service(ctx, unit)
		switch {
		case err == nil && wanted(s):
			return nil
		case ctx.Err() != nil: // which is then why there was no answer
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		select {
		case <-time.After(followPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
