// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// within returns a context that ends when d has taken longer than timeout.
func (d *Deliverer) within(ctx context.Context, timeout time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	d.bound = startCountdown(timeout, func() { cancel(fmt.Errorf("it has taken longer than %v", timeout)) })
	return ctx, func() {
		d.bound.pause()
		d.bound = nil
		cancel(nil)
	}
}

// uncounted stops the countdown, if there is one, until counted is called.
func (d *Deliverer) uncounted() (counted func()) {
	if d.bound == nil {
		return func() {}
	}
	d.bound.pause()
	return d.bound.resume
}

// tell sends something to the service manager. One that is busy takes in no messages, when
// it starts the 1,000 services of a boot for minutes, and does not look at its own timeouts
// meanwhile; when it goes on it takes in messages first. So this time is not counted: notify
// bounds it. It takes them in as they come, so that it is asked for more time before.
func (d *Deliverer) tell(send func() error) error {
	defer d.uncounted()()
	err := d.renew()
	if err == nil {
		err = send()
	}
	if err == nil { // which may have taken long
		err = d.renew()
	}
	return err
}

// put puts an fd into the unit's store, which is not there before takenIn has returned.
func (d *Deliverer) put(name string, f *fd.FD) error {
	d.unread = true
	return d.tell(func() error { return d.Store.Store(name, f) })
}

// take takes all fds of that name out of it.
func (d *Deliverer) take(name string) error {
	d.unread = true
	return d.tell(func() error { return d.Store.Remove(name) })
}

// takenIn returns when the service manager has taken in what was put and taken.
//
// This process must not end before. The service manager reads messages before it looks for
// children that have ended (the priorities in src/core/manager.c, systemd 254 to 262), but
// one that sends its last and ends between these two is seen to have ended first: its unit
// goes on without what it has sent, which is thrown away when it is read, without a word. (257,
// held for 0.3 s before each waitid, has lost what 2 of 40 such processes sent.)
func (d *Deliverer) takenIn() error {
	if !d.unread {
		return nil
	}
	err := d.barrier()
	d.unread = err != nil
	return err
}

// barrier returns when the service manager has read all that was sent.
func (d *Deliverer) barrier() error {
	d.extended = time.Time{} // as it may take longer than what is granted by now
	return d.tell(d.Store.Barrier)
}

// extend has the service manager wait for the unit for startTimeout from now on, unless it
// was asked to just now, and returns when it has room for that.
func (d *Deliverer) extend() error { return d.tell(func() error { return nil }) }

// work does what the kernel does page by page, and does not break off: of a terabyte it takes
// minutes. That time is not counted, and the service manager is asked for more before and
// meanwhile. Whether it hears that does not matter: one that takes in no messages looks at no
// timeouts either.
func (d *Deliverer) work(do func()) {
	defer d.uncounted()()
	_ = d.renew()
	done := make(chan struct{})
	var asking sync.WaitGroup
	defer asking.Wait()
	defer close(done)
	asking.Go(func() {
		again := time.NewTicker(workInterval)
		defer again.Stop()
		for {
			select {
			case <-again.C:
				_ = d.Store.ExtendTimeout(startTimeout) // see above
			case <-done:
				return
			}
		}
	})
	do()
}

// renew is extend for tell.
func (d *Deliverer) renew() error {
	if time.Since(d.extended) < extendInterval {
		return nil
	}
	err := d.Store.ExtendTimeout(startTimeout)
	d.extended = time.Now()
	return err
}
