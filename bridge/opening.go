// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

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
	if f, err := h.dupOpened(s.Session); f != nil || err != nil {
		return f, err
	}
	h.mu.Lock()
	came, n, ended := h.sessions[s.Session] != nil, h.countSessions(s.Unit), len(h.doneWith)
	h.mu.Unlock()
	switch {
	case came:
		return nil, errNotDone
	case n >= wire.MaxSessions:
		if err := h.makeRoom(ctx, s.Unit); err != nil {
			return nil, err
		}
	case ended >= maxEnded:
		// What cannot be looked at now is the next time, and is of other units.
		_ = h.forgetEnded(ctx, func(string) bool { return true })
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

// dupOpened returns a duplicate of a session that is open, which the caller owns, or nil.
func (h *Holder) dupOpened(name string) (*fd.FD, error) {
	h.mu.Lock() // or it could be closed meanwhile
	defer h.mu.Unlock()
	if o := h.opened[name]; o != nil {
		return o.session.FD().Dup()
	}
	return nil, nil
}

// newSession makes a session that the caller is to keep, and owns.
func (h *Holder) newSession(ctx context.Context, name string) (*fd.FD, error) {
	return h.inTurn(ctx, func() (*fd.FD, error) {
		// It may have been made at run time, and be asked for by its directive since.
		if f, err := h.dupOpened(name); f != nil || err != nil {
			return f, err
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
		select {
		case <-time.After(heldPause):
		case <-ctx.Done():
			return nil, err
		}
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
