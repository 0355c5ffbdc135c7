// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// opened is a session that a service has opened, for the next live update.
type opened struct {
	kho.Service
	session *session.Session
}

// adoptOpened takes over the sessions that services have opened, each with its
// label, and returns what else was passed. A label is stored before its session, so
// that one alone is what a crash has left of an answer that nobody got.
func (h *Holder) adoptOpened(passed []notify.Passed) (rest []notify.Passed) {
	sessions, labels := map[string]*fd.FD{}, map[string]*fd.FD{}
	for _, p := range passed {
		into, hash := sessions, ""
		if after, ok := strings.CutPrefix(p.Name, openPrefix); ok {
			hash = after
		} else if after, ok := strings.CutPrefix(p.Name, labelPrefix); ok {
			into, hash = labels, after
		}
		if hash == "" || into[hash] != nil {
			rest = append(rest, p)
			continue
		}
		into[hash] = p.FD
	}
	for hash, label := range labels {
		s, err := kho.ReadService(label)
		_ = label.Close() // the store has its own
		switch {
		case sessions[hash] == nil:
			h.remains(h.Keeper.Remove(labelPrefix + hash))
		case err == nil && storeHash(s.Session) == hash:
			h.opened[s.Session] = &opened{*s, session.Adopt(h.Kernel, sessions[hash])}
			delete(sessions, hash)
		}
	}
	for hash, f := range sessions {
		h.problem(journal.About{}, "Whose the session %q in fdbridged's store is cannot be told, and it is left there", openPrefix+hash)
		_ = f.Close() // as above
	}
	return rest
}

// countSessions counts a unit's sessions; the caller has h.mu. One that it is done with
// counts until it is known to be gone: the kernel has it as long as a process has.
func (h *Holder) countSessions(unit string) (n int) {
	for _, of := range h.doneWith {
		if of == unit {
			n++
		}
	}
	for _, o := range h.opened {
		if o.Unit == unit {
			n++
		}
	}
	return n + len(h.ownSessions(unit))
}

// OwnSessions returns the sessions of units' own that came and that these have not taken over.
func (h *Holder) OwnSessions() []kho.Service {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ownSessions("")
}

// ownSessions returns those of one unit, or of all if that is empty; the caller has h.mu.
func (h *Holder) ownSessions(unit string) []kho.Service {
	if h.index == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(h.index.Services), func(s kho.Service) bool {
		return h.sessions[s.Session] == nil || unit != "" && s.Unit != unit
	})
}

// came returns the session of that name that came for a unit, if it is held.
func (h *Holder) came(unit, name string) (s kho.Service, held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.ownSessions(unit) {
		if s.Session == name {
			return s, true
		}
	}
	return s, false
}

// claim returns a duplicate of a session that came, which its unit may have; nil when it
// is held no longer. The caller owns the duplicate.
func (h *Holder) claim(name string) (*fd.FD, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := h.sessions[name]
	if held == nil {
		return nil, nil
	}
	h.askedFor[name] = true
	return held.FD().Dup()
}

// lost tells whether a session that was to come can never be had.
func (h *Holder) lost(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unknown == nil && h.missing[name] != nil
}

// endSession lets go of a session that came, or was opened, if there is one. When it
// returns, PID 1 has let go of it, too, so that another can be opened.
func (h *Holder) endSession(unit, name string) error {
	if err := h.removeSession(unit, name); err != nil {
		return err
	}
	return h.Keeper.Barrier()
}

func (h *Holder) removeSession(unit, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[name] != nil {
		h.forget(name)
		h.watchers.tell(change(unit, wire.ChangeDelivered, 1))
		return nil
	}
	o := h.opened[name]
	if o == nil {
		return nil // it was ended before the connection broke
	}
	delete(h.opened, name)
	h.doneWith[name] = o.Unit
	hash := storeHash(name)
	return errors.Join(h.Keeper.Remove(openPrefix+hash), h.Keeper.Remove(labelPrefix+hash), o.session.Close())
}

// unclaimed returns the units that have claimed none of the sessions that are held for them.
// What was claimed from an earlier fdbridged is not known: then it counts as if all were.
func (h *Holder) unclaimed() (units []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index == nil || h.resumed {
		return nil
	}
	claimed := map[string]bool{} // by unit
	for _, s := range h.index.Services {
		claimed[s.Unit] = claimed[s.Unit] || h.askedFor[s.Session]
	}
	for _, s := range h.ownSessions("") {
		if !claimed[s.Unit] {
			units = append(units, s.Unit)
		}
	}
	return units
}

// holdsSession tells whether a session came and is held still.
func (h *Holder) holdsSession(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[name] != nil
}

// dropServices lets go of the sessions of a unit that came, and returns how many
// there were.
func (h *Holder) dropServices(unit string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	sessions := h.ownSessions(unit)
	for _, s := range sessions {
		h.forget(s.Session)
	}
	if len(sessions) > 0 {
		h.watchers.tell(change(unit, wire.ChangeDropped, len(sessions)))
	}
	return len(sessions)
}
