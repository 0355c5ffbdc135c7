// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/internal/bundle"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// leftHeld is what fdbridged holds at the end: its fd store, taken out of PID 1.
type leftHeld struct {
	sessions map[string]*session.Session // by name
	kept     map[string]*fd.FD           // by name in the store, see names.go
	done     map[string]bool             // marks, by name in the store
	// taken are the files that were taken out of sessions and are nowhere
	// else, by the names they would be kept under; they are the parcels'.
	taken     map[string]*fd.FD
	manifests []*fd.FD
	// unread are the sessions, by name, whose manifests cannot be read.
	unread map[string]bool
	// nameless are the names in the store of sessions of which the kernel does not say which
	// they are, as those before Linux 7.2 do not of one with a long name.
	nameless map[string]bool
}

// close closes all, which ends nothing: PID 1 has them too.
func (l *leftHeld) close() {
	for _, s := range l.sessions {
		_ = s.Close()
	}
	for _, f := range l.kept {
		_ = f.Close()
	}
	for _, f := range l.manifests {
		_ = f.Close()
	}
}

// file returns a file that is in a held session, or was. What is kept comes first,
// as for a delivery: it may be a copy that another unit has already.
func (l *leftHeld) file(a address) (*fd.FD, error) {
	if f := l.kept[keptName(a)]; f != nil {
		return f.Dup()
	}
	s := l.sessions[a.session]
	if s == nil {
		return nil, fmt.Errorf("%v: %w", a, session.ErrNoSession)
	}
	f, err := s.RetrieveFD(a.token)
	if err == nil {
		l.taken[keptName(a)] = f
	}
	return f, err
}

// takeHeld takes what fdbridged still holds for units out of its sessions, to
// be carried on. What cannot be is logged and left out; ErrRequired says that
// something of it may not be lost, and that all is where it was. rescued are the
// names of what is in this service's own store from then on.
func (p *Preserver) takeHeld(found *stores) (parcels []*parcel, rescued []string, err error) {
	if found.own == nil {
		return nil, nil, nil
	}
	duplicator, err := found.duplicator()
	if err != nil {
		return nil, nil, err
	}
	left, err := p.takeOver(found.own, found.rescued, duplicator)
	defer left.close()
	if err != nil {
		err = fmt.Errorf("not all that is held for units can be taken over: %w", err)
	}
	index, failed := left.index()
	if index == nil && failed == nil && has(found.own, indexName) {
		failed = errors.New("the index is not where it was stored")
	}
	if failed != nil {
		err = errors.Join(err, fmt.Errorf("it is not known what is held for which unit: %w", failed))
	}
	if err != nil && !p.Partly {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequired, err)
	}
	if err != nil {
		p.Log.Err("What is held for units will be lost: %v", err)
	}
	if index == nil {
		return nil, nil, nil
	}
	var lost []error // what may not be
	for i := range index.Units {
		u := &index.Units[i]
		made, err := p.held(left, u)
		if err != nil {
			p.Log.Err("%s: What is held for it in session %s will be lost: %v", u.Unit, u.Sessions[0], err)
			for _, name := range u.Sessions {
				left.unread[name] = true
			}
		}
		if made != nil {
			parcels = append(parcels, made)
		}
		if p.Required(u.Unit) && (err != nil || made.loses()) {
			lost = append(lost, fmt.Errorf("%s: what is held for it", u.Unit))
		}
	}
	if len(lost) > 0 {
		closeAll(parcels)
		return nil, nil, fmt.Errorf("%w: %w", ErrRequired, errors.Join(lost...))
	}
	p.finishHeld(left)
	rescued = slices.Collect(maps.Keys(left.taken))
	for _, e := range found.rescued {
		rescued = append(rescued, e.Name)
	}
	return parcels, rescued, nil
}

// takeOver duplicates all that is in fdbridged's store, and what an update that was called off
// has left in this service's own, and fdbridged could not have.
func (p *Preserver) takeOver(store *units.Store, rescued []units.Entry, duplicator Duplicator) (*leftHeld, error) {
	left := &leftHeld{sessions: map[string]*session.Session{}, kept: map[string]*fd.FD{},
		done: map[string]bool{}, taken: map[string]*fd.FD{}, unread: map[string]bool{}, nameless: map[string]bool{}}
	var kept, bundles []units.Entry
	for _, e := range store.Entries {
		switch {
		case isBundle(e.Name):
			bundles = append(bundles, e)
		case strings.HasPrefix(e.Name, donePrefix):
			left.done[e.Name] = true
		case strings.HasPrefix(e.Name, sessionPrefix):
			left.nameless[e.Name] = true
		case strings.HasPrefix(e.Name, keptPrefix):
			kept = append(kept, e)
		}
	}
	kept = append(kept, rescued...)
	files, failed := duplicator.Dup(kept)
	for i, file := range files {
		switch {
		case file == nil:
		case left.kept[kept[i].Name] != nil: // fdbridged has it, too
			failed = append(failed, file.FD.Close())
		default:
			left.kept[kept[i].Name] = file.FD
		}
	}
	failed = append(failed, p.openBundles(left, bundles, duplicator)...)
	sessions, err := duplicator.Sessions()
	for _, f := range sessions {
		s := session.Adopt(p.Kernel, f)
		name, err := s.Name()
		if err == nil {
			delete(left.nameless, sessionName(name))
		}
		if err != nil || !kho.IsSession(name) {
			_ = s.Close() // a service's own session
			continue
		}
		left.sessions[name] = s
	}
	return left, errors.Join(append(failed, err)...)
}

// openBundles duplicates the sessions in bundles.
func (p *Preserver) openBundles(left *leftHeld, bundles []units.Entry, duplicator Duplicator) (failed []error) {
	files, failed := duplicator.Dup(bundles)
	for _, file := range files {
		if file == nil {
			continue
		}
		list, err := bundle.Open(file.FD)
		failed = append(failed, err, file.FD.Close())
		for _, named := range list {
			left.sessions[named.Name] = session.Adopt(p.Kernel, named.FD)
		}
	}
	return failed
}

// index reads the index of the last live update; nil without one.
func (l *leftHeld) index() (*kho.Index, error) {
	s := l.sessions[kho.IndexSession]
	if s == nil {
		return nil, nil
	}
	return readIndex(s)
}

// readIndex reads the index in its session.
func readIndex(s *session.Session) (index *kho.Index, err error) {
	f, err := s.RetrieveFD(kho.ManifestToken)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return kho.ReadIndex(f)
}

// held makes a parcel of what is held for a unit; nil when it is not any more.
func (p *Preserver) held(left *leftHeld, unit *kho.IndexUnit) (*parcel, error) {
	if !left.has(unit) {
		return nil, nil
	}
	if left.isNameless(unit) {
		return nil, errNameless
	}
	at := address{unit.Sessions[0], unit.Token}
	manifest, err := left.manifest(at, unit.Unit)
	if errors.Is(err, session.ErrNoToken) {
		return nil, nil // finished and not yet removed
	}
	if err != nil {
		return nil, err
	}
	made := &parcel{unit: manifest.Unit, identity: manifest.Identity, origin: manifest.Origin, unknown: manifest.Unknown}
	for _, e := range manifest.Entries {
		if e.Kind != kho.KindLost { // what was lost then has been reported then
			made.items = append(made.items, left.item(e, at.session))
		}
	}
	return made, nil
}

// has tells whether something is held for a unit.
func (l *leftHeld) has(unit *kho.IndexUnit) bool {
	if len(unit.Sessions) == 0 {
		return false
	}
	at := address{unit.Sessions[0], unit.Token}
	return !l.done[doneName(at)] && (l.sessions[at.session] != nil || l.kept[keptName(at)] != nil || l.isNameless(unit))
}

// errNameless says that it is not known which session is that of a unit.
var errNameless = errors.New("this kernel does not show the name of its session; a unit that is started before the update gets its fds")

// isNameless tells whether what is held for a unit, by has, is in a session of which that
// cannot be said.
func (l *leftHeld) isNameless(unit *kho.IndexUnit) bool {
	at := address{unit.Sessions[0], unit.Token}
	return l.nameless[sessionName(at.session)] && l.kept[keptName(at)] == nil
}

// finished tells of a unit that something is held for, by has, whether it was let go of, and
// what is left of its session is not yet removed.
func (l *leftHeld) finished(unit *kho.IndexUnit) bool {
	at := address{unit.Sessions[0], unit.Token}
	return l.kept[keptName(at)] == nil && !l.isNameless(unit) && gone(l.sessions[at.session], at.token)
}

// manifest reads a manifest and keeps its file until close.
func (l *leftHeld) manifest(at address, unit string) (*kho.Manifest, error) {
	f, err := l.file(at)
	if err != nil {
		return nil, err
	}
	l.manifests = append(l.manifests, f)
	manifest, err := kho.ReadManifest(f, unit)
	if err != nil {
		delete(l.taken, keptName(at)) // it is of use where it is only
	}
	return manifest, err
}

// took tells whether anything was taken out of a session.
func (l *leftHeld) took(session string) bool {
	for name := range l.taken {
		if strings.HasPrefix(name, keptOf(session)) {
			return true
		}
	}
	return false
}

// finishHeld finishes the held sessions, which frees their files to be preserved
// again. What was taken out of them goes into this service's own store first:
// were the update called off after that, fdbridged finds it there. A session that
// cannot be read is left as it is: it ends with the kernel, unless the update is
// called off.
func (p *Preserver) finishHeld(left *leftHeld) {
	var failed []error
	for name, f := range left.taken {
		failed = append(failed, p.Rescue.Store(name, f))
	}
	if len(left.taken) > 0 {
		failed = append(failed, p.Rescue.Barrier())
	}
	if err := errors.Join(failed...); err != nil {
		p.Log.Warning("What is held for units would not survive if the live update were called off from here on: %v", err)
	}
	for name, s := range left.sessions {
		if name == kho.IndexSession || left.unread[name] && !left.took(name) {
			continue
		}
		if err := s.Finish(); err != nil {
			p.Log.Err("What is held in session %s will be lost: %v", name, err)
		}
	}
}

// item is an entry of a manifest in a session, with its file.
func (l *leftHeld) item(e kho.Entry, in string) item {
	it := item{entry: e, apart: e.Open > 0}
	if e.Kind != kho.KindLUO {
		it.lost = fmt.Errorf("this version cannot carry on an entry of kind %q", e.Kind)
		return it
	}
	in = e.SessionOf(in)
	it.entry.Session, it.entry.Token, it.entry.Open = "", 0, 0
	if it.file, it.lost = l.file(address{in, e.Token}); it.lost == nil {
		st, err := it.file.Stat()
		it.inode, it.lost = inode{st.Dev, st.Ino}, err
	}
	return it
}
