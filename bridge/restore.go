// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

const (
	// unknownPatience is how long from the start of Restore it is worth while
	// for a unit to wait until it is known what is held. A device that is busy
	// for longer may be so for ever, and delays no unit after that.
	unknownPatience = 30 * time.Second
	// retryPause is how long Retry waits before it tries a busy device again.
	retryPause = 250 * time.Millisecond
)

// Restore takes over what an earlier fdbridged of this boot has held, which
// comes in passed, and retrieves from the kernel what nobody has retrieved yet.
// It takes ownership of passed. It waits ten seconds at most for a device that
// is busy; Retry goes on from there.
//
// What cannot be restored is logged and kept for Problems; the rest goes on. A
// session that was not retrieved stays in the kernel until the next boot.
func (h *Holder) Restore(ctx context.Context, passed []notify.Passed) {
	h.mu.Lock()
	h.sessions, h.kept = map[string]*session.Session{}, map[string]*fd.FD{}
	h.bundled, h.unopened = map[string]string{}, map[string]bool{}
	h.outcome = map[string]string{}
	h.begun, h.done, h.missing, h.absent = map[string]string{}, map[string]bool{}, map[string]error{}, map[string]error{}
	h.assigned = map[string]string{}
	h.tried, h.patience = make(chan struct{}), time.Now().Add(unknownPatience)
	h.opened, h.doneWith, h.askedFor, h.opening = map[string]*opened{}, map[string]string{}, map[string]bool{}, make(chan struct{}, 1)
	h.resumed = len(passed) > 0
	h.adopt(h.adoptOpened(passed))
	h.mu.Unlock()
	if err := h.rescue(ctx); err != nil {
		h.mu.Lock()
		h.twice, h.elsewhere = true, true
		h.problem(journal.About{}, "Not all that a live update that was called off had taken apart can be taken over: %v; \"systemctl restart %s\" tries it again", err, OwnUnit)
		h.mu.Unlock()
	}
	if err := h.complete(ctx); err != nil {
		h.Problem(journal.About{}, "What the kernel before this one has handed over cannot be restored: %v", err)
	}
	if err := h.Keeper.Barrier(); err != nil {
		h.Problem(journal.About{}, "What is held may not survive a crash of fdbridged: %v", err)
	}
}

// Retry tries again to restore what Restore could not because the device was
// busy, until it can or ctx ends. It tells whether there was something to do
// and it was done: more may be held then.
func (h *Holder) Retry(ctx context.Context) bool {
	for {
		if err := h.state(); !errors.Is(err, session.ErrBusy) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retryPause):
		}
		err := h.complete(ctx)
		switch {
		case errors.Is(err, session.ErrBusy):
			continue
		case err != nil:
			h.Problem(journal.About{}, "What the kernel before this one has handed over cannot be restored: %v", err)
		default:
			h.Log.Info("What the kernel before this one has handed over was restored at last.")
		}
		return true
	}
}

// Known waits until it is known what is held for all of units, or cannot be
// known, and returns why not. It does not wait beyond 30 seconds from Restore.
func (h *Holder) Known(ctx context.Context, units ...string) error {
	ctx, stop := context.WithDeadline(ctx, h.patience)
	defer stop()
	select {
	case <-h.tried:
	case <-ctx.Done():
	}
	err := h.state(units...)
	if errors.Is(err, session.ErrBusy) {
		err = fmt.Errorf("%w; \"fuser %s\" tells which, and when it is free, a unit gets its fds when it is started again", err, h.Device)
	}
	return err
}

// state returns why it is not known what is held for one of units, nil if it is
// for all of them; of none, why nothing is known.
func (h *Holder) state(units ...string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unknown != nil {
		return fmt.Errorf("what was handed over cannot be read: %w", h.unknown)
	}
	for _, unit := range units {
		if h.missing[unit] != nil {
			return h.missing[unit]
		}
	}
	return nil
}

// allCame tells whether all sessions of a unit are there that can ever be had.
func (h *Holder) allCame(unit string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	missing := h.missing[unit]
	return h.unknown == nil && len(h.unopened) == 0 && !h.elsewhere && (missing == nil || errors.Is(missing, session.ErrNoSession))
}

// later returns why a parcel of the index is not held, where it may be later: it cannot be had
// for now, or it is not known whether it can. The caller has h.mu.
func (h *Holder) later(u *kho.IndexUnit) error {
	if slices.ContainsFunc(h.held, func(p *holding) bool { return p.is(u) }) {
		return nil
	}
	for _, name := range u.Sessions {
		if err := cmp.Or(h.unknown, h.absent[name]); err != nil {
			return err
		}
	}
	return nil
}

// behind returns why another parcel of the same unit, which is to be delivered before one,
// cannot be had yet.
func (h *Holder) behind(p *holding) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index == nil {
		return nil
	}
	for i := range h.index.Units {
		u := &h.index.Units[i]
		if p.is(u) {
			break
		}
		if err := h.later(u); err != nil && u.Unit == p.Unit {
			return err
		}
	}
	return nil
}

// complete restores what is not restored yet, and says why that cannot be.
func (h *Holder) complete(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, deviceTimeout)
	defer stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	again := h.sessions[kho.IndexSession] != nil
	err := h.readIndexed() // what was adopted can be delivered whatever becomes of the rest
	if err == nil {
		err = h.open(ctx, again)
	}
	h.unknown = err
	if !again && errors.Is(err, session.ErrNoDevice) {
		h.unknown = nil // then nothing was handed over
	}
	if !errors.Is(err, session.ErrBusy) {
		close(h.tried)
	}
	return err
}

// open gets the index and the sessions in it from the kernel, except what is
// there; again says that an earlier fdbridged has begun with that. It lets go
// of h.mu while it waits for the device.
func (h *Holder) open(ctx context.Context, again bool) error {
	h.mu.Unlock()
	device, err := session.OpenWait(ctx, h.Kernel, h.Device)
	h.mu.Lock()
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }() // sessions live on without it
	start := time.Now()
	if !again {
		if found, err := h.fetchIndex(device); !found || err != nil {
			return err
		}
	}
	h.fetchAll(device, again && !h.cut)
	h.remains(h.Keeper.Remove(retrievingName))
	h.takeStock(nil)
	if !again {
		h.restored = span{start, time.Since(start)}
		h.report()
	}
	if len(h.missing)+len(h.unopened) == 0 {
		h.tidy()
	}
	return nil
}

// report logs what the live update has brought and lost. The caller has h.mu.
func (h *Holder) report() {
	if h.index == nil {
		return
	}
	summary := handover(h.index)
	h.Log.InfoOf(journal.About{Kind: journal.Restored}, "The live update from Linux %s has brought %d fds of %d units.",
		summary.Release, summary.Entries, summary.Units)
	repeat(h.Log, h.index)
}

// repeat logs what was lost with a live update, and what needs attention: what its own kernel
// has logged of that is in no journal.
func repeat(log *journal.Log, index *kho.Index) {
	for _, message := range index.Messages {
		log.Warning("Before the live update: %s", message)
	}
	for _, u := range index.Units {
		for _, lost := range u.Lost {
			log.ErrOf(journal.About{Kind: journal.Lost, Unit: u.Unit, FD: lost.Name},
				"%s: The fd %q (%s) was lost with the live update: %s", u.Unit, lost.Name, lost.Type, lost.Reason)
		}
	}
}

// fetchIndex gets the index from the kernel and reads it, if there is one: without
// a live update, or with one without fdbridge, there is none.
func (h *Holder) fetchIndex(device *session.Device) (found bool, err error) {
	if err := mark(h.Keeper, retrievingName, ""); err != nil {
		h.problem(journal.About{}, "What is lost if fdbridged crashes now will not be known: %v", err)
	}
	err = h.fetch(device, kho.IndexSession, h.storeSession)
	switch {
	case errors.Is(err, session.ErrNoSession) && !h.cut:
		h.strangers()
		err = nil
	case err != nil:
		return false, err
	default:
		found, err = true, h.readIndexed()
	}
	if !found || err != nil {
		h.remains(h.Keeper.Remove(retrievingName))
	}
	return found, err
}

// fetchAll retrieves the sessions in the index that are not there yet; again says
// that an earlier fdbridged had all of them.
func (h *Holder) fetchAll(device *session.Device, again bool) {
	bundles := bundler{h: h}
	defer bundles.close()
	for _, u := range h.index.Units {
		for _, name := range u.Sessions {
			if err := h.fetchNew(device, name, again, bundles.store); err != nil {
				if before := h.missing[u.Unit]; before == nil || errors.Is(before, session.ErrNoSession) { // see allCame
					h.missing[u.Unit] = err
				}
				if !errors.Is(err, session.ErrNoSession) && !errors.Is(err, session.ErrRetrieved) {
					h.absent[name] = err
				}
				h.problem(journal.About{Kind: journal.Lost, Unit: u.Unit, Session: name}, "%s: Its fds cannot be restored: %v", u.Unit, err)
			}
		}
	}
	for _, s := range h.index.Services {
		if err := h.fetchNew(device, s.Session, again, h.storeSession); err != nil {
			h.missing[s.Session] = err
			h.problem(journal.About{Kind: journal.Lost, Unit: s.Unit, Session: s.Session}, "%s: Its session %q cannot be restored: %v", s.Unit, s.Name, err)
		}
	}
}

// fetchNew is fetch for a session that is not there yet.
func (h *Holder) fetchNew(device *session.Device, name string, again bool, store storing) error {
	if h.sessions[name] != nil || h.earlier[name] {
		return nil
	}
	err := h.fetch(device, name, store)
	// Sessions that were finished before a restart are gone, or a client that
	// was given one is about to close it.
	if again && (errors.Is(err, session.ErrNoSession) || errors.Is(err, session.ErrRetrieved)) {
		return nil
	}
	return err
}

// errCut says that a session was lost: it is finished when it is closed, as the
// kernel does when fdbridged is killed right after it has retrieved it.
var errCut = errors.New("an fdbridged was killed before it had put the session into its store, which has emptied it")

// storing puts a session into fdbridged's store.
type storing func(name string, s *session.Session) error

// storeSession is a storing that makes an entry of its own of it.
func (h *Holder) storeSession(name string, s *session.Session) error {
	return h.Keeper.Store(sessionName(name), s.FD())
}

// fetch retrieves one session and puts it into fdbridged's store at once.
func (h *Holder) fetch(device *session.Device, name string, store storing) error {
	s, err := device.Retrieve(name)
	if h.cut && errors.Is(err, session.ErrNoSession) {
		err = fmt.Errorf("%w: %w", errCut, err)
	}
	if err != nil {
		return err
	}
	h.sessions[name] = s
	if err := store(name, s); err != nil {
		h.problem(journal.About{Session: name}, "The session %s will not survive a crash of fdbridged: %v", name, err)
	}
	return nil
}

// takeStock finds out which parcels are held, after h.sessions has grown. Sessions
// that were adopted may have been finished before.
func (h *Holder) takeStock(adopted map[string]bool) {
	held := map[address]*holding{}
	for _, p := range h.held {
		held[p.manifest()] = p
	}
	h.held = nil
	for i := range h.index.Units {
		p := &holding{h.index.Units[i]}
		if len(p.Sessions) == 0 {
			continue
		}
		if same := held[p.manifest()]; same != nil {
			p = same
		} else if !h.isThere(p.manifest(), adopted) {
			continue
		} else {
			h.watchers.tell(change(p.Unit, wire.ChangeHeld, p.Entries))
		}
		h.held = append(h.held, p)
	}
}

// isThere tells whether a parcel is held, by the place of its manifest. One
// that cannot be read for another reason than that it is gone is held.
func (h *Holder) isThere(manifest address, adopted map[string]bool) bool {
	s := h.sessions[manifest.session]
	switch {
	case h.done[doneName(manifest)]:
		return false
	case h.kept[keptName(manifest)] != nil:
		return true
	case s == nil:
		return len(h.unopened) > 0
	case !adopted[manifest.session]:
		return true
	}
	if gone(s, manifest.token) && !h.elsewhere {
		h.forget(manifest.session)
		return false
	}
	return true
}
