// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// Keeper is an fd store; notify.Socket is the way to it, and notify.Backlog for a Holder, whose
// lock others wait for: its Remove does not wait for PID 1. Store does, with the lock, for
// what is seldom stored while units start: sessions, and files that several units have. It
// does not keep the descriptor that it is given.
type Keeper interface {
	Store(name string, f *fd.FD) error
	Remove(name string) error
	Flush() error
	Barrier() error
}

// Holder holds what came through a live update until its units want it. It
// keeps all of it in its unit's fd store, so that a crash loses nothing: the
// next fdbridged adopts it from there. See names.go for what is in that store.
//
// What is held is a matter of parcels, as the index has them: a parcel is held
// as long as its manifest can be had. A session lives until it is finished,
// which is when the parcel whose files are in it is released.
type Holder struct {
	Kernel session.Kernel
	Device string // session.Path but in tests
	Keeper Keeper
	// Rescued returns what a preserve that was rolled back has left of the
	// sessions that it took apart: their files, by their names as kept files,
	// which become the Holder's, and a function that lets go of them where they
	// are. With an error these are not all, and the function is not called. It is
	// nil when there is nowhere to look.
	Rescued func(ctx context.Context) (files []notify.Passed, letGo func() error, err error)
	Log     *journal.Log

	releasing sync.Mutex    // one parcel at a time is released
	mending   sync.Mutex    // and one shared file is mended, once
	opening   chan struct{} // has a value while a session is opened

	mu       sync.Mutex
	index    *kho.Index // nil when nothing was handed over
	sessions map[string]*session.Session
	bundled  map[string]string  // of sessions in bundles that are not finished: the bundles' names in the store
	unopened map[string]bool    // the bundles that cannot be opened
	kept     map[string]*fd.FD  // by their names in the store
	keptSent int                // how many of them were sent to PID 1
	keptRead int                // and how many of these it is known to have read
	held     []*holding         // in the order of the index
	opened   map[string]*opened // by the kernel's name of the session
	doneWith map[string]string  // the unit of sessions that it is done with, and may have open, by the kernel's name
	resumed  bool               // an earlier fdbridged of this boot had something
	askedFor map[string]bool    // the services' sessions that were claimed from this Holder
	begun    map[string]string  // the invocations in begun deliveries' marks, by hash
	done     map[string]bool    // the names of the marks of parcels that are done
	assigned map[string]string  // by unit: who is to have what is held for it, see Assign
	cut      bool               // an earlier fdbridged has ended while it retrieved sessions
	earlier  map[string]bool    // the sessions that an earlier fdbridged has retrieved
	twice    bool               // what is kept is where the next Holder may rescue it from, too
	// elsewhere says that a session without its files may be of what was rescued in part only.
	elsewhere bool
	adopted   []notify.Passed  // what is not sorted: the index is not read, or knows it not
	missing   map[string]error // by unit, or a service's session: why something of it cannot be had
	absent    map[string]error // by session of a unit: why it cannot be had for now
	unknown   error            // why it is not known what is held; nil when it is
	tried     chan struct{}    // closed when unknown will not change any more
	patience  time.Time        // until when it is worth while to wait for that
	problems  []string
	outcome   map[string]string // by unit: what Unit.Outcome of package wire says
	restored  span              // when the sessions were retrieved; zero if an earlier fdbridged did it

	watchers watchers
}

// span is a time and how long what began then took.
type span struct {
	start time.Time
	took  time.Duration
}

// holding is a parcel that is held.
type holding struct{ kho.IndexUnit }

// is tells whether it is the parcel that an index has.
func (p *holding) is(u *kho.IndexUnit) bool {
	return p.Unit == u.Unit && slices.Equal(p.Sessions, u.Sessions) && p.Token == u.Token
}

// manifest is where the parcel's manifest is.
func (p *holding) manifest() address { return address{p.Sessions[0], p.Token} }

// maxProblems bounds how many problems of one boot are kept, and maxProblem how long each is,
// in bytes: it has to fit into a packet, in which each of them takes six at most. The log has
// all.
const (
	maxProblems = 1000
	maxProblem  = 8 << 10
)

// problem logs what went wrong and keeps it for Problems.
func (h *Holder) problem(about journal.About, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	h.Log.ErrOf(about, "%s", text)
	h.note(text)
}

// note keeps what went wrong for Problems.
func (h *Holder) note(text string) {
	text = strings.ReplaceAll(text[:min(len(text), maxProblem)], "\n", "; ")
	if len(h.problems) < maxProblems && !slices.Contains(h.problems, text) {
		h.problems = append(h.problems, text)
	}
	h.watchers.tell(wire.Answer{Problem: text})
}

// Problem records a problem of this boot, as Restore does.
func (h *Holder) Problem(about journal.About, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem(about, format, args...)
}

// Problems returns what went wrong in this boot, a sentence each.
func (h *Holder) Problems() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.problems)
}

// Index returns what the last live update brought; nil without one. The caller
// must not change it.
func (h *Holder) Index() *kho.Index {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.index
}

// Held returns the parcels that are held for a unit, the one to be delivered
// first in front.
func (h *Holder) Held(unit string) []kho.IndexUnit {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []kho.IndexUnit
	for _, p := range h.held {
		if p.Unit == unit {
			list = append(list, p.IndexUnit)
		}
	}
	return list
}

// Units returns the names of the units that something is held for.
func (h *Holder) Units() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []string
	seen := map[string]bool{}
	for _, p := range h.held {
		if !seen[p.Unit] {
			seen[p.Unit] = true
			list = append(list, p.Unit)
		}
	}
	return list
}

// Refusal records that who asked for something did not get it, as Problem does.
// Only the log names that process, which is another one each time.
func (h *Holder) Refusal(about journal.About, who, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	h.Log.ErrOf(about, "%s (asked for by %s)", text, who)
	h.note(text)
}

// first returns the parcel of unit that is to be delivered first; nil when
// nothing is held.
func (h *Holder) first(unit string) *holding {
	return h.find(func(p *holding) bool { return p.Unit == unit })
}

// at returns the parcel whose manifest is at a; nil when it is not held.
func (h *Holder) at(a address) *holding {
	return h.find(func(p *holding) bool { return p.manifest() == a })
}

func (h *Holder) find(what func(p *holding) bool) *holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.held, what); i >= 0 {
		return h.held[i]
	}
	return nil
}

// descriptor returns that of a session, which stays the Holder's and lasts at
// least until the parcel whose manifest is in it is released; nil if there is
// none any more.
func (h *Holder) descriptor(name string) *fd.FD {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[name]; s != nil {
		return s.FD()
	}
	return nil
}

// begin marks that a delivery of a parcel begins, in this invocation of its
// unit. It does not wait until PID 1 has the mark: what the delivery stores is
// behind it in PID 1's queue. It is lost only with what fdbridged has sent right before it is
// killed. No delivery in another invocation has begun and not come to an end. Whoever
// calls it has the unit's turn.
func (h *Holder) begin(p *holding, invocation string) error {
	hash := markHash(p.manifest())
	if h.begunIn(p) == invocation {
		return nil
	}
	if err := mark(h.Keeper, begunName(hash, invocation), ""); err != nil {
		return fmt.Errorf("note that a delivery begins: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begun[hash] = invocation
	return nil
}

// begunIn returns the invocation of its unit in which a delivery of a parcel was
// begun that has not come to an end; empty when there is none.
func (h *Holder) begunIn(p *holding) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.begun[markHash(p.manifest())]
}

// ended takes the mark of a begun delivery away: the parcel is where it belongs,
// or nothing of it is.
func (h *Holder) ended(p *holding) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unmark(markHash(p.manifest()))
}

// unmark is ended for who has h.mu.
func (h *Holder) unmark(hash string) error {
	invocation, begun := h.begun[hash]
	if !begun {
		return nil
	}
	delete(h.begun, hash)
	return h.Keeper.Remove(begunName(hash, invocation))
}

// Close closes the Holder's own descriptors; what is held is held on in the fd
// store.
func (h *Holder) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var failed []error
	for _, s := range h.sessions {
		failed = append(failed, s.Close())
	}
	for _, f := range h.kept {
		failed = append(failed, f.Close())
	}
	for _, o := range h.opened {
		failed = append(failed, o.session.Close())
	}
	for _, p := range h.adopted {
		failed = append(failed, p.FD.Close())
	}
	clear(h.sessions)
	clear(h.kept)
	clear(h.opened)
	h.adopted = nil
	return errors.Join(failed...)
}
