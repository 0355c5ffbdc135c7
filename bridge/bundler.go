// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/bundle"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

const (
	// bundleSize is how many sessions there are in a bundle. It is removed from
	// fdbridged's store when the last of them is finished, and not before.
	bundleSize = 64
	// maxBundled is how many there are in all bundles. What is in the queue of a
	// socket counts for the user who has put it there, and once there is more of it than
	// the 1,024 fds that systemd allows a service by default, a service of root that is
	// without CAP_SYS_ADMIN and CAP_SYS_RESOURCE cannot pass any (too_many_unix_fds in
	// net/core/scm.c). PID 1's own queue has room for 512 messages.
	maxBundled = 7 * bundleSize
)

// bundler puts sessions into fdbridged's store, many in one entry. PID 1 takes a message for
// each entry, compares its fd with all that are there, and has each closed by a process of
// its own (service_add_fd_store in src/core/service.c, src/shared/async.c, systemd 257): with
// a thousand sessions it did little else for two seconds of a boot.
type bundler struct {
	h    *Holder
	last *bundle.Bundle // nil at first
	name string         // its name in the store
	room int            // how many more it takes; it is closed when there is none
}

// store is a storing. What finds no place in a bundle becomes an entry of its own.
func (b *bundler) store(name string, s *session.Session) error {
	if b.room == 0 {
		b.begin()
	}
	if b.room == 0 || b.last.Add(name, s.FD()) != nil {
		return b.h.storeSession(name, s)
	}
	b.room--
	b.h.bundled[name] = b.name
	return nil
}

// begin stores a further bundle, if there may be one. It is stored before there is anything
// in it, so that what is added is in PID 1's hands at once.
func (b *bundler) begin() {
	b.close()
	if len(b.h.bundled)+bundleSize > maxBundled {
		return
	}
	next, err := bundle.New()
	if err != nil {
		return
	}
	b.last, b.name = next, b.h.freeBundle()
	if b.h.Keeper.Store(b.name, next.FD()) == nil {
		b.room = bundleSize
	}
}

// close lets go of the last bundle, which fdbridged's store has.
func (b *bundler) close() { _ = b.last.Close() }

// freeBundle returns the name of a bundle in which nothing is known to be.
func (h *Holder) freeBundle() string {
	for n := 0; ; n++ {
		if name := fmt.Sprint(bundlePrefix, n); !h.isNeeded(name) {
			return name
		}
	}
}

// isNeeded tells whether a session that is not finished is in a bundle.
func (h *Holder) isNeeded(bundle string) bool {
	for _, name := range h.bundled {
		if name == bundle {
			return true
		}
	}
	return false
}

// adoptBundle takes over the sessions in a bundle, by their own names. One that cannot be
// opened is left for the next fdbridged, and what may be in it counts as held.
func (h *Holder) adoptBundle(p notify.Passed) {
	list, err := bundle.Open(p.FD)
	_ = p.FD.Close() // the store has its own
	for _, named := range list {
		h.bundled[named.Name] = p.Name
		h.adopted = append(h.adopted, notify.Passed{Name: named.Name, FD: named.FD})
	}
	if err != nil {
		h.problem(journal.About{FD: p.Name}, "Not all that is behind the fd %q in fdbridged's store can be had, and it is left there: %v", p.Name, err)
		h.unopened[p.Name] = true
	} else if len(list) == 0 { // the one before was killed then
		h.remains(h.Keeper.Remove(p.Name))
	}
}

// unstore takes a session that is finished out of fdbridged's store. One in a bundle is only a
// descriptor, which stays there until nothing in its bundle is needed any more.
func (h *Holder) unstore(session string) error {
	name, bundled := h.bundled[session]
	if !bundled {
		return h.Keeper.Remove(sessionName(session))
	}
	delete(h.bundled, session)
	if h.unopened[name] || h.isNeeded(name) {
		return nil
	}
	return h.Keeper.Remove(name)
}

// isBundle tells whether a name in fdbridged's store is that of a bundle.
func isBundle(name string) bool { return strings.HasPrefix(name, bundlePrefix) }
