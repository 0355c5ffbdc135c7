// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// ending is a service that is asked about over one connection each time.
func ending(p *bulktest.Peer, active string) {
	pid1{"a.service": {properties: map[string]any{
		unitInterface + ".ActiveState": active, unitInterface + ".InactiveExitTimestampMonotonic": uint64(7),
		serviceInterface + ".StatusText": "It is " + active,
	}}}.serve(p)
}

func TestAServiceIsFollowedUntilItIsAsWanted(t *testing.T) {
	states := make(chan string, 4)
	for _, state := range []string{"active", "deactivating", "failed", "inactive"} {
		states <- state
	}
	r := reader(t, func(p *bulktest.Peer) { ending(p, <-states) })
	var seen []Service
	err := r.Follow(t.Context(), "a.service", time.Minute, func(s Service) bool {
		seen = append(seen, s)
		return s.Active == "failed"
	})
	want := []Service{{"active", 7, "It is active"}, {"deactivating", 7, "It is deactivating"}, {"failed", 7, "It is failed"}}
	if diff := cmp.Diff(want, seen); diff != "" || err != nil {
		t.Errorf("%v, seen (-want +got):\n%s", err, diff)
	}
}

func TestAServiceIsNotFollowedForEver(t *testing.T) {
	r := reader(t, func(p *bulktest.Peer) { ending(p, "active") })
	err := r.Follow(t.Context(), "a.service", 300*time.Millisecond, func(Service) bool {
		time.Sleep(400 * time.Millisecond)
		return false
	})
	if err == nil || err.Error() != "a.service has taken longer than 300ms" {
		t.Errorf("a service that stays as it is: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	err = r.Follow(ctx, "a.service", time.Minute, func(Service) bool {
		time.AfterFunc(followPause/5, stop)
		return false
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("when nobody waits any more: %v", err)
	}
	nobody := &Reader{Socket: t.TempDir() + "/none"}
	if err := nobody.Follow(t.Context(), "a.service", time.Minute, nil); !errors.Is(err, ErrManager) {
		t.Errorf("without PID 1: %v, want %v", err, ErrManager)
	}
}
