// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// captureTries is how often a store that changes while it is captured is
// read, before what was not found is lost.
const captureTries = 3

// parcel is what one session will carry, with the way to get at its files.
type parcel struct {
	unit     string
	session  string // the name of the session to be
	identity kho.Identity
	origin   kho.Origin
	items    []item
	// open gets the items' files, shortly before they are preserved, so that
	// the files of one unit are open at a time. An item without a file is lost.
	open func(ctx context.Context, p *parcel)
}

// item is one entry of a parcel.
type item struct {
	entry kho.Entry
	file  *fd.FD // owned; nil until the parcel is opened
	lost  error  // why it cannot be carried
}

// lose marks the items that are not lost yet.
func (p *parcel) lose(err error) {
	for i := range p.items {
		if p.items[i].lost == nil {
			p.items[i].lost = err
		}
	}
}

// close closes the items' files. For memfds close(2) has no error to report.
func (p *parcel) close() {
	for i := range p.items {
		_ = p.items[i].file.Close()
	}
}

// captured makes a parcel of a unit's store.
func (p *Preserver) captured(store *units.Store, duplicator Duplicator) *parcel {
	made := &parcel{
		unit:     store.Unit,
		session:  kho.SessionName(store.Unit),
		identity: kho.Identity{Fragment: store.FragmentPath, User: store.User, Group: store.Group},
		origin:   p.Origin,
	}
	made.open = func(ctx context.Context, parcel *parcel) { p.capture(ctx, parcel, store.Entries, duplicator) }
	made.items = items(store.Entries)
	return made
}

func items(entries []units.Entry) []item {
	list := make([]item, len(entries))
	for i := range entries {
		e := &entries[i]
		list[i].entry = kho.Entry{Name: e.Name, Type: e.Type(), Flags: uint32(e.Flags)}
	}
	return list
}

// capture duplicates the files of a store. A store that has changed since it
// was listed is listed again, and PID 1's fds with it.
func (p *Preserver) capture(ctx context.Context, parcel *parcel, entries []units.Entry, duplicator Duplicator) {
	changed := duplicate(parcel, entries, duplicator)
	for try := 1; changed && try < captureTries; try++ {
		parcel.close()
		fresh, err := p.Stores.Entries(ctx, parcel.unit)
		if err != nil {
			parcel.lose(fmt.Errorf("the store has changed and cannot be listed again: %w", err))
			return
		}
		again, err := p.Duplicator()
		if err != nil {
			parcel.lose(err)
			return
		}
		parcel.items = items(fresh)
		changed = duplicate(parcel, fresh, again)
		if err := again.Close(); err != nil {
			parcel.lose(err)
		}
	}
}

// duplicate gets each entry's file and tells whether one was not there any more.
func duplicate(parcel *parcel, entries []units.Entry, duplicator Duplicator) (changed bool) {
	for i := range parcel.items {
		it := &parcel.items[i]
		file, err := duplicator.Dup(&entries[i])
		if it.lost = err; err != nil {
			changed = changed || errors.Is(err, units.ErrChanged)
			continue
		}
		it.file, it.entry.Size, it.entry.Position, it.entry.Seals = file.FD, file.Size, file.Position, kho.Seals(file.Seals)
	}
	return changed
}

// held makes a parcel of a session that waits for its unit since an earlier
// live update, so that it waits on in the next kernel. It takes ownership of
// s; the error names a session that cannot be carried on as a whole.
func (p *Preserver) held(s *session.Session) (*parcel, error) {
	manifest, err := readManifest(s, "")
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	made := &parcel{unit: manifest.Unit, identity: manifest.Identity, origin: manifest.Origin}
	for _, e := range manifest.Entries {
		if e.Kind != kho.KindLost { // what was lost then has been reported then
			made.items = append(made.items, item{entry: e})
		}
	}
	made.open = func(_ context.Context, parcel *parcel) { reopen(parcel, s) }
	return made, nil
}

// reopen takes a held session's files out of it, which frees them to be
// preserved again.
func reopen(parcel *parcel, s *session.Session) {
	for i := range parcel.items {
		it := &parcel.items[i]
		if it.entry.Kind != kho.KindLUO {
			it.lost = fmt.Errorf("this version cannot carry on an entry of kind %q", it.entry.Kind)
			continue
		}
		it.file, it.lost = s.RetrieveFD(it.entry.Token)
	}
	if err := errors.Join(s.Finish(), s.Close()); err != nil {
		parcel.lose(err)
	}
}

// readManifest reads a session's manifest, which must be that of unit unless
// unit is empty.
func readManifest(s *session.Session, unit string) (m *kho.Manifest, err error) {
	f, err := s.RetrieveFD(kho.ManifestToken)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return kho.ReadManifest(f, unit)
}

// parcels lists what there is to carry: the stores of the opted-in units, and
// the sessions that fdbridged still holds.
func (p *Preserver) parcels(ctx context.Context) (list []*parcel, duplicator Duplicator, err error) {
	stores, err := p.Stores.Stores(ctx)
	if errors.Is(err, units.ErrManager) {
		return nil, nil, err
	}
	if err != nil { // of single stores: the others go on
		p.Log.Err("Not every fd store can be read, what is in these will be lost: %v", err)
	}
	duplicator, err = p.Duplicator()
	if err != nil {
		return nil, nil, err
	}
	holding := false
	for i := range stores {
		store := &stores[i]
		holding = holding || store.Unit == OwnUnit
		if store.OptedIn() && store.Unit != OwnUnit && !p.Excluded(store.Unit) {
			list = append(list, p.captured(store, duplicator))
		}
	}
	if holding {
		list = p.addHeld(list, duplicator)
	}
	return list, duplicator, nil
}

// addHeld adds the held sessions to list. A unit that has a store again keeps
// both: the older session follows the newer one under a name of its own.
func (p *Preserver) addHeld(list []*parcel, duplicator Duplicator) []*parcel {
	sessions, err := duplicator.Sessions()
	if err != nil {
		p.Log.Err("Sessions that are held will be lost: %v", err)
	}
	for _, f := range sessions {
		s := session.Adopt(p.Kernel, f)
		name, err := s.Name()
		if err != nil || !kho.IsSession(name) || name == kho.IndexSession {
			_ = s.Close() // a service's own session, or the index, which is made anew
			continue
		}
		made, err := p.held(s)
		if err != nil {
			p.Log.Err("The session %s, which is held, will be lost: %v", name, err)
			continue
		}
		made.session = nextSession(list, made.unit)
		list = append(list, made)
	}
	return list
}

// nextSession is the name of a further session of unit.
func nextSession(list []*parcel, unit string) string {
	taken := func(name string) bool {
		return slices.ContainsFunc(list, func(p *parcel) bool { return p.session == name })
	}
	name := kho.SessionName(unit)
	for n := 2; taken(name); n++ {
		name = kho.SessionName(fmt.Sprintf("%s#%d", unit, n))
	}
	return name
}
