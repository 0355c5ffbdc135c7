// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
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

// The kernel takes minutes for a terabyte, and does not break off what it does.
func TestTheServiceManagerWaitsWhileTheKernelWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kernel := slow{takes: 100 * time.Second}
		manager := &recorder{}
		d := Deliverer{Store: manager}
		ctx, stop := d.within(t.Context(), timeout)
		defer stop()
		u := unpacking{Deliverer: &d, grant: &wire.Grant{Session: "s"}, session: session.Adopt(kernel, restored(t, "", 0, 0))}
		defer u.session.Close()
		if _, err := u.fetch(ctx, place{"s", 1}); !errors.As(err, &lostError{}) {
			t.Errorf("fetch: %v; want what the kernel says", err)
		}
		if diff := cmp.Diff([]string{"extend", "extend", "extend", "extend"}, manager.said); diff != "" {
			t.Errorf("the service manager was told (-want +got):\n%s", diff)
		}
		time.Sleep(timeout - time.Second)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("the delivery has ended before its time: %v", context.Cause(ctx))
		}
	})
}

// It may take in no messages when it is asked for that time.
func TestWhatTheServiceManagerTakesBeforeTheKernelWorksIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := Deliverer{Store: &recorder{busy: 5 * time.Minute}}
		ctx, stop := d.within(t.Context(), timeout)
		defer stop()
		worked := false
		d.work(func() { worked = true })
		if synctest.Wait(); !worked || ctx.Err() != nil {
			t.Errorf("worked %v; the delivery has ended: %v", worked, context.Cause(ctx))
		}
	})
}

// slow is a kernel that takes time to retrieve a file, and then fails.
type slow struct{ takes time.Duration }

func (slow) Open(string) (*fd.FD, error) { return nil, unix.ENOENT }

func (s slow) Ioctl(_ *fd.FD, req uint, _ []byte) error {
	if req == session.ReqRetrieveFD {
		time.Sleep(s.takes)
	}
	return unix.EIO
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
