// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Backlog is the way to an fd store for who has locks: Remove does not wait for a service
// manager that is busy. All comes to it in the order of the calls. What still waits is
// gone when the process ends, so that who depends on it calls Flush. Methods may be called
// from several goroutines.
type Backlog struct {
	Socket *Socket
	// Failed is told why something that has waited could not be removed, when nothing
	// waits any more.
	Failed func(err error)

	mu      sync.Mutex
	waiting []string      // names that are to be removed
	empty   chan struct{} // closed when none waits any more; nil when none does
}

// Remove is that of Socket, but that there is no room is no error: it is tried again
// as long as a message of the Socket waits.
func (b *Backlog) Remove(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.empty == nil || !ValidName(name) {
		err := b.Socket.remove(name, unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		b.empty = make(chan struct{})
		go b.work()
	}
	b.waiting = append(b.waiting, name)
	return nil
}

// work sends what waits.
func (b *Backlog) work() {
	var failed error
	for name, ok := b.next(); ok; name, ok = b.next() {
		failed = errors.Join(failed, b.Socket.Remove(name))
	}
	if failed != nil {
		b.Failed(failed)
	}
}

// next returns what is to be removed next, and false when nothing waits any more.
func (b *Backlog) next() (name string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		close(b.empty)
		b.empty = nil
		return "", false
	}
	name, b.waiting = b.waiting[0], b.waiting[1:]
	return name, true
}

// Store is that of Socket, when nothing waits any more.
func (b *Backlog) Store(name string, f *fd.FD) error {
	if err := b.Flush(); err != nil {
		return fmt.Errorf("store an fd as %q: %w", name, err)
	}
	return b.Socket.Store(name, f)
}

// Barrier is that of Socket, when nothing waits any more.
func (b *Backlog) Barrier() error {
	if err := b.Flush(); err != nil {
		return err
	}
	return b.Socket.Barrier()
}

// Flush waits until nothing waits, or returns ErrBarrier when that takes longer than a
// message may. The service manager need not have read it then.
func (b *Backlog) Flush() error {
	b.mu.Lock()
	empty := b.empty
	b.mu.Unlock()
	if empty == nil {
		return nil
	}
	select {
	case <-empty:
		return nil
	case <-time.After(b.Socket.wait):
		return fmt.Errorf("%w within %v", ErrBarrier, b.Socket.wait)
	}
}
