// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// release lets go of a parcel that is where it belongs, or that nobody wants
// any more: its sessions are finished, and it is not held any longer.
//
// A file counts as preserved as long as its session is not finished, and cannot
// be carried through the next live update (luo_preserve_file, Linux 7.1). So no
// session lives on in which there are files of a delivered parcel: those that
// other parcels need, manifests too, are kept, as ordinary fds in fdbridged's
// store.
//
// A session that cannot be finished is left where it is and is a Problem; if
// the parcel's manifest is in it, or may be in another store, a mark says that
// the parcel is done. An error means that the parcel is held on. A crash at any
// point leaves either the parcel held, or something to tidy up for the next
// Restore.
func (h *Holder) release(p *holding) error {
	h.releasing.Lock()
	defer h.releasing.Unlock()
	if h.at(p.manifest()) == nil {
		return nil // it was released while this one waited
	}
	stays, err := h.letGo(p, h.keepNeeded(p))
	if err != nil {
		return err
	}
	told := h.Keeper.Flush // without the lock: PID 1 may be busy
	if stays {
		told = h.Keeper.Barrier // or the next fdbridged might take it for held
	}
	if err := told(); err != nil {
		h.Remains(err)
	}
	return nil
}

// letGo is release when what others need is kept; leave is what keepNeeded returns. stays
// says that fdbridged's store had the parcel's manifest, or its session still has it, so that
// only what PID 1 is told says that it is done.
func (h *Holder) letGo(p *holding, leave map[string]error) (stays bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.kept[keptName(p.manifest())] != nil
	held := h.held
	h.held = slices.DeleteFunc(slices.Clone(held), func(other *holding) bool { return other == p })
	for _, name := range p.Sessions { // that of the manifest first: then the parcel is not held
		if leave[name] == nil {
			leave[name] = h.finish(name)
		}
		if err := leave[name]; err != nil {
			h.problem(journal.About{Unit: p.Unit, Session: name}, "%s: The session %s cannot be finished: %v", p.Unit, name, err)
		}
	}
	unfinished := leave[p.Sessions[0]] != nil
	if unfinished || h.twice && kept {
		if err := mark(h.Keeper, doneName(p.manifest()), ""); err != nil {
			h.held = held
			return false, fmt.Errorf("note that it is done: %w", err)
		}
		h.done[doneName(p.manifest())] = true
	}
	h.remains(h.unmark(markHash(p.manifest())), h.discard(p.Sessions, p), h.unmarkDone(), h.unassign())
	return kept || unfinished, nil
}

// Remains reports what could not be removed from fdbridged's store.
func (h *Holder) Remains(failed ...error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remains(failed...)
}

// remains is Remains for who has h.mu.
func (h *Holder) remains(failed ...error) {
	if err := errors.Join(failed...); err != nil {
		h.problem(journal.About{}, "Something that is not needed any more cannot be removed from fdbridged's store: %v", err)
	}
}

// keepNeeded keeps what other parcels than p need of the sessions of p, and
// returns which of them are to be left alone, and why. When it returns, PID 1
// has what is kept of the others.
func (h *Holder) keepNeeded(p *holding) (leave map[string]error) {
	h.mu.Lock()
	leave = map[string]error{}
	for _, name := range p.Sessions {
		if h.sessions[name] == nil {
			continue
		}
		if unit := h.awaited(name, p); unit != "" {
			leave[name] = fmt.Errorf("%s has files in it, too, and cannot be had yet", unit)
		} else {
			leave[name] = h.keep(name, h.users(name, p))
		}
	}
	sent, read := h.keptSent, h.keptRead
	h.mu.Unlock()
	if read == sent {
		return leave
	}
	err := h.Keeper.Barrier() // without the lock: PID 1 may be busy
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.keptRead = sent
	}
	for name := range leave {
		leave[name] = cmp.Or(leave[name], err)
	}
	return leave
}

// awaited returns a unit that has files in a session and is not held, but may be later: its
// own session cannot be had for now. It is empty when there is none but the unit of but.
func (h *Holder) awaited(name string, but *holding) string {
	if h.index == nil {
		return ""
	}
	for i := range h.index.Units {
		u := &h.index.Units[i]
		if slices.Contains(u.Sessions, name) && (but == nil || !but.is(u)) && h.later(u) != nil {
			return u.Unit
		}
	}
	return ""
}

// keep keeps the files of a session that users need.
func (h *Holder) keep(name string, users []*holding) error {
	needs, err := h.neededBy(name, users)
	if err != nil {
		return err
	}
	for a := range needs {
		if h.kept[keptName(a)] != nil {
			continue
		}
		f, err := h.sessions[name].RetrieveFD(a.token)
		if err == nil {
			err = h.hold(a, f)
		}
		if err != nil {
			_ = f.Close()
			return fmt.Errorf("another unit needs %v: %w", a, err)
		}
	}
	return nil
}

// finish ends a session, of which nothing is needed any more.
func (h *Holder) finish(name string) error {
	s := h.sessions[name]
	if s == nil {
		return nil // it was taken apart before
	}
	if err := s.Finish(); err != nil {
		return err
	}
	h.forget(name)
	return nil
}

// forget lets go of a session that is finished: what is left of it is only a
// descriptor.
func (h *Holder) forget(name string) {
	if err := errors.Join(h.unstore(name), h.sessions[name].Close()); err != nil {
		h.problem(journal.About{Session: name}, "The session %s, which is empty, stays in fdbridged's store: %v", name, err)
	}
	delete(h.sessions, name)
}

// discard lets go of the kept files of sessions that nobody needs any more, now that but is done.
func (h *Holder) discard(sessions []string, but *holding) (failed error) {
	for _, name := range sessions {
		if h.awaited(name, but) != "" {
			continue
		}
		var spare []string
		needed := map[string]bool{}
		for kept := range h.kept {
			if strings.HasPrefix(kept, keptOf(name)) {
				spare = append(spare, kept)
			}
		}
		if len(spare) == 0 {
			continue
		}
		needs, err := h.neededBy(name, h.users(name, nil))
		if err != nil {
			h.problem(journal.About{Session: name}, "Files of the session %s are kept that may not be needed: %v", name, err)
			continue
		}
		for a := range needs {
			needed[keptName(a)] = true
		}
		for _, kept := range spare {
			if needed[kept] {
				continue
			}
			failed = errors.Join(failed, h.Keeper.Remove(kept), h.kept[kept].Close())
			delete(h.kept, kept)
		}
	}
	return failed
}

// unmarkDone removes the marks of parcels whose manifests cannot be had any more.
func (h *Holder) unmarkDone() (failed error) {
	if h.twice || len(h.done) == 0 {
		return nil
	}
	for i := range h.index.Units {
		p := &holding{h.index.Units[i]}
		if len(p.Sessions) == 0 || h.sessions[p.Sessions[0]] != nil {
			continue
		}
		if name := doneName(p.manifest()); h.done[name] {
			delete(h.done, name)
			failed = errors.Join(failed, h.Keeper.Remove(name))
		}
	}
	return failed
}

// tidy removes what a crash in the middle of a release has left: sessions, kept
// files and marks that no parcel has anything to do with any more.
func (h *Holder) tidy() {
	var sessions []string
	for _, u := range h.index.Units {
		sessions = append(sessions, u.Sessions...)
	}
	for _, name := range sessions {
		if len(h.users(name, nil)) == 0 {
			h.remains(h.finish(name))
		}
	}
	begun := maps.Clone(h.begun)
	for _, p := range h.held {
		delete(begun, markHash(p.manifest()))
	}
	for hash := range begun {
		h.remains(h.unmark(hash))
	}
	h.remains(h.discard(sessions, nil), h.unmarkDone(), h.unassign())
}

// Drop lets go of all that is held for a unit without delivering it, and returns how many
// parcels that were. No delivery to the unit may be under way. The error says what is held on.
func (h *Holder) Drop(unit string) (n int, err error) {
	for p := h.first(unit); p != nil; p = h.first(unit) {
		if err := h.release(p); err != nil {
			return n, fmt.Errorf("drop what is held for %s: %w", unit, err)
		}
		n++
		h.settled(unit, wire.ChangeDropped, p.Entries)
		h.Log.InfoOf(journal.About{Kind: journal.Dropped, Unit: unit, Session: p.Sessions[0]}, "%s: Dropped %d fds of session %s.", unit, p.Entries, p.Sessions[0])
	}
	return n, nil
}
