// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

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

// What a service can be answered with, beside errors of the kernel and of PID 1.
var (
	errNotDone = errors.New("it came through the last live update, and is to be claimed, and done with, before it can be opened again")
	errTooMany = fmt.Errorf("the unit has %d sessions, and no unit may have more", wire.MaxSessions)
	errEnding  = fmt.Errorf("%w; one that it is done with counts until no process has it open", errTooMany)
	errHeld    = errors.New("the unit has a session of this name already, in its fd store or in one of its processes")
)

const (
	// heldTries is how often it is tried to make a session that another is in the way
	// of, and heldPause how long to wait in between: half a second in all.
	heldTries = 50
	heldPause = 10 * time.Millisecond
	// maxEnded is how many sessions that units are done with are remembered before all
	// are looked at: a transient unit that is gone asks for none any more.
	maxEnded = 256
)

// openSession returns a duplicate of the session that a unit has opened under this name,
// and opens it when there is none. The caller owns it. When it is returned, PID 1
// has it in fdbridged's store.
func (h *Holder) openSession(ctx context.Context, s kho.Service) (*fd.FD, error) {
	if err := h.Known(ctx, ""); err != nil {
		return nil, err
	}
	return h.inTurn(ctx, func() (*fd.FD, error) { return h.findOrOpen(ctx, s) })
}

// findOrOpen is openSession for who has the turn.
func (h *Holder) findOrOpen(ctx context.Context, s kho.Service) (*fd.FD, error) {
	h.mu.Lock()
	o, came, n := h.opened[s.Session], h.sessions[s.Session] != nil, h.countSessions(s.Unit)
	ended := len(h.doneWith)
	h.mu.Unlock()
	switch {
	case o != nil:
		return o.session.FD().Dup()
	case came:
		return nil, errNotDone
	case n >= wire.MaxSessions:
		if err := h.makeRoom(ctx, s.Unit); err != nil {
			return nil, err
		}
	case ended >= maxEnded:
		if err := h.forgetEnded(ctx, func(string) bool { return true }); err != nil {
			return nil, err // as would be the session
		}
	}
	made, err := h.create(ctx, s.Session)
	if err != nil {
		return nil, err
	}
	f, err := made.FD().Dup()
	if err == nil {
		err = h.keepOpened(s, made)
	}
	if err != nil {
		_ = f.Close()
		return nil, errors.Join(err, made.Close())
	}
	return f, nil
}

// newSession makes a session that the caller is to keep, and owns.
func (h *Holder) newSession(ctx context.Context, name string) (*fd.FD, error) {
	return h.inTurn(ctx, func() (*fd.FD, error) {
		h.mu.Lock()
		o := h.opened[name]
		h.mu.Unlock()
		if o != nil { // at run time, and asked for by its directive since
			return o.session.FD().Dup()
		}
		made, err := h.create(ctx, name)
		if err != nil {
			return nil, err
		}
		return made.FD(), nil
	})
}

// inTurn makes a session when no other is being made, and lets others have their turn
// while it waits for one that is in the way: a session is gone with its last descriptor,
// which a process that has ended, or an answer that was sent just now, may close a
// moment later.
func (h *Holder) inTurn(ctx context.Context, try func() (*fd.FD, error)) (*fd.FD, error) {
	for tries := 1; ; tries++ {
		done, err := h.openTurn(ctx)
		if err != nil {
			return nil, err
		}
		f, err := try()
		done()
		mayEnd := errors.Is(err, errHeld) || errors.Is(err, errEnding)
		if !mayEnd || tries == heldTries {
			return f, err
		}
		time.Sleep(heldPause)
	}
}

// openTurn waits until no other session is being opened, and returns what ends the
// turn: the device has one opener.
func (h *Holder) openTurn(ctx context.Context) (done func(), err error) {
	select {
	case h.opening <- struct{}{}:
		return func() { <-h.opening }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("other sessions are being opened: %w", context.Cause(ctx))
	}
}

// withDevice lets do have the device; the caller has the turn.
func (h *Holder) withDevice(ctx context.Context, do func(d *session.Device) error) error {
	ctx, stop := context.WithTimeout(ctx, deviceTimeout)
	defer stop()
	device, err := session.OpenWait(ctx, h.Kernel, h.Device)
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }() // sessions live on without it
	return do(device)
}

// create makes an outgoing session; the caller owns it, and has the turn.
func (h *Holder) create(ctx context.Context, name string) (made *session.Session, err error) {
	err = h.withDevice(ctx, func(d *session.Device) (err error) {
		made, err = d.Create(name)
		return err
	})
	if errors.Is(err, session.ErrExist) {
		err = errHeld
	}
	if err == nil { // then the one of that name is gone
		h.mu.Lock()
		delete(h.doneWith, name)
		h.mu.Unlock()
	}
	return made, err
}

// keepOpened keeps a session that a service has opened, in fdbridged's store too.
func (h *Holder) keepOpened(s kho.Service, made *session.Session) error {
	label, err := s.Memfd()
	if err != nil {
		return err
	}
	defer func() { _ = label.Close() }() // the store has its own
	hash := storeHash(s.Session)
	err = h.Keeper.Store(labelPrefix+hash, label)
	if err == nil {
		err = h.Keeper.Store(openPrefix+hash, made.FD())
	}
	if err == nil {
		err = h.Keeper.Barrier()
	}
	if err != nil {
		return errors.Join(err, h.Keeper.Remove(openPrefix+hash), h.Keeper.Remove(labelPrefix+hash))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened[s.Session] = &opened{s, made}
	return nil
}

// makeRoom returns why a unit that has all the sessions that it may have cannot have
// one more. The caller has the turn.
func (h *Holder) makeRoom(ctx context.Context, unit string) error {
	err := h.forgetEnded(ctx, func(of string) bool { return of == unit })
	h.mu.Lock()
	defer h.mu.Unlock()
	ending := slices.Contains(slices.Collect(maps.Values(h.doneWith)), unit)
	switch {
	case h.countSessions(unit) < wire.MaxSessions:
		return nil
	case err != nil:
		return fmt.Errorf("%w, unless some are gone, which cannot be seen: %w", errTooMany, err)
	case ending:
		return errEnding
	}
	return errTooMany
}

// forgetEnded forgets those of the sessions that units were done with which are gone.
func (h *Holder) forgetEnded(ctx context.Context, of func(unit string) bool) error {
	h.mu.Lock()
	ended := maps.Clone(h.doneWith)
	h.mu.Unlock()
	maps.DeleteFunc(ended, func(_, unit string) bool { return !of(unit) })
	if len(ended) == 0 {
		return nil
	}
	return h.withDevice(ctx, func(d *session.Device) error {
		for name := range ended {
			there, err := d.HasOutgoing(name)
			if err != nil {
				return err
			}
			if !there {
				h.mu.Lock()
				delete(h.doneWith, name)
				h.mu.Unlock()
			}
		}
		return nil
	})
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
	for _, s := range h.cameFor(unit) {
		if h.sessions[s.Session] != nil {
			n++
		}
	}
	return n
}

// cameFor returns the sessions of a unit that came, finished or not.
func (h *Holder) cameFor(unit string) []kho.Service {
	if h.index == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(h.index.Services), func(s kho.Service) bool { return s.Unit != unit })
}

// came returns the session of that name that came for a unit, if it is held.
func (h *Holder) came(unit, name string) (s kho.Service, held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.cameFor(unit) {
		if s.Session == name && h.sessions[name] != nil {
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
func (h *Holder) endSession(name string) error {
	if err := h.removeSession(name); err != nil {
		return err
	}
	return h.Keeper.Barrier()
}

func (h *Holder) removeSession(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[name] != nil {
		h.forget(name)
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

// unclaimed returns the units that something is held for, also those that have
// claimed none of their sessions. What was claimed from an earlier fdbridged is not
// known: then it counts as if all were.
func (h *Holder) unclaimed() []string {
	units := h.Units()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index == nil || h.resumed {
		return units
	}
	for _, s := range h.index.Services {
		claimed := slices.ContainsFunc(h.cameFor(s.Unit), func(s kho.Service) bool { return h.askedFor[s.Session] })
		if h.sessions[s.Session] != nil && !claimed && !slices.Contains(units, s.Unit) {
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
func (h *Holder) dropServices(unit string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.cameFor(unit) {
		if h.sessions[s.Session] != nil {
			h.forget(s.Session)
			n++
		}
	}
	return n
}
