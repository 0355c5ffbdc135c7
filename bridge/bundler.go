// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/bundle"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// bundler puts sessions into fdbridged's store, many in one entry. PID 1 takes one message
// for each entry, compares it with all that are there, and has each closed by a process of
// its own (service_add_fd_store in src/core/service.c, systemd 257; src/shared/async.c): with
// a thousand sessions it did little else for two seconds of a boot.
type bundler struct {
	h    *Holder
	last *bundle.Bundle // nil at first
}

// store is a storing. A session is in the bundle at once, and the bundle in PID 1's queue
// before: what was retrieved is not without an owner for longer than if it were stored by
// itself.
func (b *bundler) store(name string, s *session.Session) error {
	err := bundle.ErrFull
	if b.last != nil {
		err = b.last.Add(name, s.FD())
	}
	if errors.Is(err, bundle.ErrFull) {
		err = b.begin()
		if err == nil {
			err = b.last.Add(name, s.FD())
		}
	}
	if err == nil {
		b.h.bundled[name] = true
	}
	return err
}

// begin stores a further bundle.
func (b *bundler) begin() error {
	next, err := bundle.New()
	if err == nil {
		err = b.h.Keeper.Store(bundleName, next.FD())
	}
	if err != nil {
		return errors.Join(err, next.Close())
	}
	b.close()
	b.last = next
	return nil
}

// close lets go of the last bundle, which fdbridged's store has.
func (b *bundler) close() { _ = b.last.Close() }

// adoptBundle takes over the sessions in a bundle. They are to be sorted like those that
// have entries of their own.
func (h *Holder) adoptBundle(p notify.Passed) {
	list, err := bundle.Open(p.FD)
	_ = p.FD.Close() // the store has its own
	if err != nil {
		h.problem(journal.About{FD: p.Name}, "Not all that is behind the fd %q in fdbridged's store can be had, and it is left there: %v", p.Name, err)
		h.bundled[""] = true
	}
	for _, named := range list {
		h.bundled[named.Name] = true
		h.adopted = append(h.adopted, notify.Passed{Name: sessionName(named.Name), FD: named.FD})
	}
}
