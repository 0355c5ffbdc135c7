// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// The time is synctest's.
func TestPatienceHasAnEnd(t *testing.T) {
	for name, c := range map[string]struct {
		at   func(passed time.Duration) error
		want time.Duration
	}{
		"crashed": {func(time.Duration) error { return unix.ECONNREFUSED }, RestartTimeout},
		"stopped": {func(time.Duration) error { return unix.ENOENT }, AbsentTimeout},
		"crashed, and binds its socket anew": {func(passed time.Duration) error {
			if passed > 5*time.Second && passed < 6*time.Second {
				return unix.ENOENT
			}
			return unix.ECONNREFUSED
		}, RestartTimeout},
		"crashed, and then stopped": {func(passed time.Duration) error {
			if passed > 5*time.Second {
				return unix.ENOENT
			}
			return unix.ECONNREFUSED
		}, 5*time.Second + AbsentTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			var p Patience
			start := time.Now()
			var err, why error
			for err == nil {
				why = c.at(time.Since(start))
				err = p.Wait(t.Context(), why)
			}
			if waited := time.Since(start); !errors.Is(err, why) || waited < c.want || waited > c.want+3*RetryDelay {
				t.Errorf("%s: %v after %v, want %v after %v", name, err, waited, why, c.want)
			}
		})
	}
}

func TestPatienceEndsWithTheContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	var p Patience
	if err := p.Wait(ctx, unix.ECONNREFUSED); !errors.Is(err, unix.ECONNREFUSED) || !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v, want both", err)
	}
}
