// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// Keeper is the fd store of fdbridged's own unit; notify.Socket is the way to it.
type Keeper interface {
	Store(name string, f *fd.FD) error
	Remove(name string) error
	Barrier() error
}

// Holder holds the sessions that came through a live update until their units
// want them. It keeps all of them in its unit's fd store, the index too, so
// that a crash loses none: the next fdbridged adopts them from there.
type Holder struct {
	Kernel session.Kernel
	Device string // session.Path but in tests
	Keeper Keeper
	Log    *journal.Log

	mu       sync.Mutex
	index    *kho.Index // nil when nothing was handed over
	sessions map[string]*session.Session
	problems []string
}

// keepName is the name of a session in fdbridged's fd store, where a session's
// own name may have characters that are not allowed.
func keepName(session string) string {
	if session == kho.IndexSession {
		return "index"
	}
	sum := sha256.Sum256([]byte(session))
	return "s-" + hex.EncodeToString(sum[:8])
}

// Restore takes over the sessions that an earlier fdbridged of this boot has
// held, which come in passed, and retrieves from the kernel those that nobody
// has retrieved yet. It takes ownership of passed.
//
// What cannot be restored is logged and kept for Problems; the rest goes on. A
// session that was not retrieved stays in the kernel until the next boot.
func (h *Holder) Restore(ctx context.Context, passed []notify.Passed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions = map[string]*session.Session{}
	for _, p := range passed {
		h.adopt(p)
	}
	_, again := h.sessions[kho.IndexSession]
	if err := h.retrieve(ctx, again); err != nil {
		h.problem("What the kernel before this one has handed over cannot be restored: %v", err)
	}
	if err := h.Keeper.Barrier(); err != nil {
		h.problem("The sessions may not survive a crash of fdbridged: %v", err)
	}
}

// adopt takes over one fd of fdbridged's store.
func (h *Holder) adopt(p notify.Passed) {
	s := session.Adopt(h.Kernel, p.FD)
	name, err := s.Name()
	switch {
	case err != nil:
		h.problem("The fd %q in fdbridged's store is no session: %v", p.Name, err)
	case !kho.IsSession(name) || keepName(name) != p.Name:
		h.problem("The session %q in fdbridged's store, named %q there, is none of fdbridge's", name, p.Name)
	default:
		h.sessions[name] = s
		return
	}
	// Closing this fd ends nothing: the store has its own.
	_ = s.Close()
}

// retrieve gets the index and the sessions in it from the kernel, except what
// was adopted; again says that an earlier fdbridged has done so before.
func (h *Holder) retrieve(ctx context.Context, again bool) error {
	ctx, stop := context.WithTimeout(ctx, deviceTimeout)
	defer stop()
	if again { // what was adopted can be delivered whatever becomes of the rest
		var err error
		if h.index, err = h.readIndex(); err != nil {
			return err
		}
	}
	device, err := session.OpenWait(ctx, h.Kernel, h.Device)
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }() // sessions live on without it
	if !again {
		err := h.fetch(device, kho.IndexSession)
		if errors.Is(err, session.ErrNoSession) {
			return nil // no live update, or none with fdbridge
		}
		if err != nil {
			return err
		}
		if h.index, err = h.readIndex(); err != nil {
			return err
		}
	}
	for _, unit := range h.index.Units {
		for _, name := range unit.Sessions {
			if _, adopted := h.sessions[name]; adopted {
				continue
			}
			// Sessions that were delivered before a restart are gone.
			if err := h.fetch(device, name); err != nil && (!again || !errors.Is(err, session.ErrNoSession)) {
				h.problem("%s: Its fds cannot be restored: %v", unit.Unit, err)
			}
		}
	}
	return nil
}

// fetch retrieves one session and puts it into fdbridged's store at once.
func (h *Holder) fetch(device *session.Device, name string) error {
	s, err := device.Retrieve(name)
	if err != nil {
		return err
	}
	h.sessions[name] = s
	if err := h.Keeper.Store(keepName(name), s.FD()); err != nil {
		h.problem("The session %s will not survive a crash of fdbridged: %v", name, err)
	}
	return nil
}

func (h *Holder) readIndex() (index *kho.Index, err error) {
	f, err := h.sessions[kho.IndexSession].RetrieveFD(kho.ManifestToken)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return kho.ReadIndex(f)
}

// maxProblems bounds how many problems of one boot are kept; the log has all.
const maxProblems = 1000

// problem logs what went wrong and keeps it for Problems.
func (h *Holder) problem(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	h.Log.Err("%s", text)
	if len(h.problems) < maxProblems {
		h.problems = append(h.problems, text)
	}
}

// Problem records a problem of this boot, as Restore does.
func (h *Holder) Problem(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem(format, args...)
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

// Held returns the names of the sessions that are held for a unit, the one to
// be delivered first in front.
func (h *Holder) Held(unit string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index == nil {
		return nil
	}
	var held []string
	for _, u := range h.index.Units {
		if u.Unit != unit {
			continue
		}
		for _, name := range u.Sessions {
			if h.sessions[name] != nil {
				held = append(held, name)
			}
		}
	}
	return held
}

// Session returns a held session, which stays the Holder's; nil if it is not
// held.
func (h *Holder) Session(name string) *session.Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[name]
}

// Finish ends a session whose files are where they belong, and lets go of it.
// On an error the session is held on.
func (h *Holder) Finish(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[name]
	if s == nil {
		return fmt.Errorf("finish the session %s: it is not held", name)
	}
	if err := s.Finish(); err != nil {
		return err
	}
	delete(h.sessions, name)
	// It is empty now; what is left of it is only a descriptor.
	return errors.Join(h.Keeper.Remove(keepName(name)), s.Close())
}

// Close closes the Holder's own descriptors; the sessions are held on in the
// fd store.
func (h *Holder) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var failed []error
	for _, s := range h.sessions {
		failed = append(failed, s.Close())
	}
	clear(h.sessions)
	return errors.Join(failed...)
}

// Units returns the names of the units that sessions are held for.
func (h *Holder) Units() []string {
	index := h.Index()
	if index == nil {
		return nil
	}
	var held []string
	for _, u := range index.Units {
		if len(h.Held(u.Unit)) > 0 {
			held = append(held, u.Unit)
		}
	}
	return held
}
