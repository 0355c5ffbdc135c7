// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

// contents is what a manifest says of where the files of its parcel are: its
// entries, of which several can be of one file, and the manifest, which has none.
type contents map[address]*kho.Entry

// read reads a parcel's manifest. The caller has h.mu.
func (h *Holder) read(p *holding) (contents, error) {
	m, err := h.manifest(p)
	if err != nil {
		return nil, err
	}
	files := contents{p.manifest(): nil}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Token == 0 {
			continue
		}
		files[address{e.SessionOf(p.Sessions[0]), e.Token}] = e
	}
	return files, nil
}

// manifest reads the manifest of a parcel, which has to be that of its unit. The
// caller has h.mu.
func (h *Holder) manifest(p *holding) (m *kho.Manifest, err error) {
	f, err := h.retrieve(p.manifest())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return kho.ReadManifest(f, p.Unit)
}

// readManifest is manifest for who has not h.mu.
func (h *Holder) readManifest(p *holding) (*kho.Manifest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.manifest(p)
}

// delivery is what is to be known of a parcel while it is delivered.
type delivery struct {
	*holding
	to    string // the unit
	clear bool   // what is in its store is what an interrupted delivery has left there
	// storing says that something of the parcel may be in its store.
	storing bool
	inStore int // how many sessions are in its store
	files   contents
	shared  contents // what is kept, or other parcels need, too
}

// isShared tells whether other parcels have files in the same sessions, or had.
func (h *Holder) isShared(p *holding) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.kept) > 0 || slices.ContainsFunc(p.Sessions, func(name string) bool { return len(h.users(name, p)) > 0 })
}

// inspect returns what there is to know for the delivery of a parcel.
func (h *Holder) inspect(p *holding) (*delivery, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	files, err := h.read(p)
	if err != nil {
		return nil, err
	}
	d := &delivery{holding: p, files: files, shared: contents{}}
	for _, name := range p.Sessions {
		// One whose manifest cannot be read gets nothing, and has nothing to share.
		needs, _ := h.neededBy(name, h.users(name, p))
		maps.Copy(d.shared, needs)
	}
	maps.DeleteFunc(d.shared, func(a address, _ *kho.Entry) bool { return files[a] == nil })
	for a, e := range files {
		if e != nil && h.kept[keptName(a)] != nil {
			d.shared[a] = e
		}
	}
	return d, nil
}

// retrieve returns a file; the caller owns it and has h.mu. One that is kept
// comes first: its session was finished, or it is what the session's was mended
// to.
func (h *Holder) retrieve(a address) (*fd.FD, error) {
	if kept := h.kept[keptName(a)]; kept != nil {
		return kept.Dup()
	}
	if s := h.sessions[a.session]; s != nil {
		return s.RetrieveFD(a.token)
	}
	return nil, fmt.Errorf("retrieve %v: %w", a, session.ErrNoSession)
}

// locked is retrieve for who has not h.mu.
func (h *Holder) locked(a address) (*fd.FD, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.retrieve(a)
}

// gone tells whether a file cannot be had from a session any more because that is
// finished. One that cannot be had for another reason is there.
func gone(s *session.Session, token uint64) bool {
	f, err := s.RetrieveFD(token)
	_ = f.Close() // it was only to be seen
	return errors.Is(err, session.ErrNoToken)
}

// file returns a file of a parcel that is being delivered; the caller owns it.
//
// A file that another parcel needs, too, gets its seals back here, if that takes
// a new file: each of the units would make one of its own. The new file is kept
// in its place. That takes long where it is large, and is broken off when ctx ends.
func (h *Holder) file(ctx context.Context, d *delivery, a address) (*fd.FD, error) {
	if _, shared := d.shared[a]; !shared {
		return h.locked(a)
	}
	h.mending.Lock()
	defer h.mending.Unlock()
	f, err := h.locked(a)
	if err != nil {
		return nil, err
	}
	sealed, err := deliver.Reseal(ctx, f, d.files[a]) // without h.mu
	if err != nil || sealed == f {
		return sealed, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.hold(a, sealed); err != nil {
		return nil, errors.Join(err, sealed.Close())
	}
	return sealed.Dup()
}

// hold keeps a file, which is the Holder's from then on; the caller has h.mu. One that takes the
// place of another does so only here: fdbridged's store cannot tell two of one
// name apart, and must at no time have none. If fdbridged crashes then, units
// that have yet to get the file get another than those that have it.
func (h *Holder) hold(a address, f *fd.FD) error {
	name := keptName(a)
	if old := h.kept[name]; old != nil {
		h.kept[name] = f
		return old.Close()
	}
	if err := h.Keeper.Store(name, f); err != nil {
		return err
	}
	h.kept[name] = f
	h.keptSent++
	return nil
}

// users returns the held parcels that have files in a session, but not one.
func (h *Holder) users(name string, but *holding) []*holding {
	var users []*holding
	for _, p := range h.held {
		if p != but && slices.Contains(p.Sessions, name) {
			users = append(users, p)
		}
	}
	return users
}

// neededBy returns what users need of a session.
func (h *Holder) neededBy(name string, users []*holding) (contents, error) {
	all := contents{}
	for _, user := range users {
		needs, err := h.read(user)
		if err != nil {
			return nil, fmt.Errorf("what %s needs of it is not known: %w", user.Unit, err)
		}
		maps.Copy(all, needs)
	}
	maps.DeleteFunc(all, func(a address, _ *kho.Entry) bool { return a.session != name })
	return all, nil
}
