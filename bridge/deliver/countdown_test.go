// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTimeTheServiceManagerTakesIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		manager := &recorder{busy: 5 * time.Minute}
		d := Deliverer{Store: manager}
		ctx, stop := d.within(t.Context(), timeout)
		defer stop()
		if err := d.extend(); err != nil {
			t.Fatal(err)
		}
		if err := d.tell(func() error { return d.Store.Store("a", nil) }); err != nil {
			t.Fatal(err)
		}
		// The service manager has begun to count again, too: it is to grant as much as before.
		if diff := cmp.Diff([]string{"extend", "store a", "extend"}, manager.said); diff != "" {
			t.Errorf("the service manager was told (-want +got):\n%s", diff)
		}
		time.Sleep(timeout - time.Second)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("the delivery has ended before its time: %v", context.Cause(ctx))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("the delivery goes on when its time has passed")
		}
		if err := d.tell(d.Store.Barrier); err != nil { // as when it is given back
			t.Error(err)
		}
	})
}

func TestACountdownHasItsWholeTimeWhenItIsTheUnitsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var over atomic.Bool
		c := startCountdown(time.Minute, func() { over.Store(true) })
		for range 3 {
			time.Sleep(50 * time.Second)
			c.restart()
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if over.Load() {
			t.Error("it is over before its time")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !over.Load() {
			t.Error("it is not over")
		}
		over.Store(false) // and now it was called
		c.pause()
		c.resume()
		c.restart()
		time.Sleep(time.Hour)
		if over.Load() {
			t.Error("it was over, and began again")
		}
	})
}

func TestTheServiceManagerIsToldAgainWhileADeliveryGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		manager := &recorder{}
		d := Deliverer{Store: manager}
		if err := d.extend(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b", "c"} {
			time.Sleep(3 * time.Second)
			if err := d.tell(func() error { return d.Store.Store(name, nil) }); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]string{"extend", "store a", "extend", "store b", "store c"}, manager.said); diff != "" {
			t.Errorf("the service manager was told (-want +got):\n%s", diff)
		}
	})
}

// A process that was held up finds its time over before the timer has said so.
func TestACountdownThatIsPausedTooLateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var over atomic.Bool
		c := startCountdown(time.Minute, func() { over.Store(true) })
		c.since = c.since.Add(-time.Hour)
		c.pause()
		if c.resume(); over.Load() {
			t.Error("it has called its function by itself")
		}
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !over.Load() {
			t.Error("it does not end")
		}
	})
}
