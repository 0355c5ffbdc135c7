// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

// packer puts parcels into sessions, several at a time.
//
// The kernel carries a file once, in whatever session it comes to first. What
// is the same file as one that was packed already is therefore not packed
// again: the manifest says where it is.
type packer struct {
	device *session.Device
	done   *Preserved // owns the sessions and the files

	mu      sync.Mutex
	names   map[string]bool
	rooms   []*room // the units', in the order of their creation
	claims  map[inode]*claim
	refused []func()
	early   map[string]*room // by unit, those that Prepare has made
}

// claim is a file that is preserved once, for all that want it.
type claim struct {
	opens []*fd.FD // its open files; the kernel carries the first
	// early says that Prepare has preserved it, and used that it is in a store still.
	early, used bool
	// What follows is set when it has been packed.
	room  *room
	token uint64
	err   error
}

// room is a session that files are put into.
type room struct {
	name    string
	session *session.Session
	early   bool // it is to be made anew if need be, see renew

	mu   sync.Mutex
	held []held // what is in it, if it is early
	next uint64 // the token of the next file
	used bool   // there is something in it
	full bool   // the kernel takes no more files into it
}

// held is a file in a session.
type held struct {
	file  *fd.FD
	token uint64
}

// usual is for how many files a packer has room from the beginning: making more takes a
// while when services are away, and this room takes little memory.
const usual = 4096

func newPacker(done *Preserved) *packer {
	done.files = slices.Grow(done.files, usual)
	return &packer{done: done, names: map[string]bool{}, claims: make(map[inode]*claim, usual), early: map[string]*room{}}
}

// create creates a session; the caller has k.mu once work has begun.
func (k *packer) create(name string) (*session.Session, error) {
	s, err := k.device.Create(name)
	if err == nil {
		k.done.sessions = append(k.done.sessions, s)
	}
	return s, err
}

// pack puts a parcel's files into sessions; it takes them over. The manifest
// follows at once unless it has to say where another parcel's files are.
func (k *packer) pack(p *parcel) {
	waits := false
	for i, first := range k.claim(p.items) {
		it := &p.items[i]
		if it.lost != nil {
			continue
		}
		c := it.shared
		if !first {
			waits = waits || !c.early
			continue
		}
		place := func() { c.room, c.token, c.err = k.place(p, func(r *room) (uint64, error) { return r.put(it.file) }) }
		if place(); errors.Is(c.err, session.ErrPreserved) {
			waits = true
			k.later(place)
		}
	}
	if !waits {
		k.manifest(p)
	}
}

// later notes what is to be tried again when held sessions are finished: a file
// that was delivered to one unit stays in its session while the session is held
// for another.
func (k *packer) later(place func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refused = append(k.refused, place)
}

// again tries what was refused before.
func (k *packer) again() {
	for _, place := range k.refused {
		place()
	}
	k.refused = nil
}

// claim finds out which items are the first of their files, and which open file each
// of the others is. An item for which that cannot be said is lost.
func (k *packer) claim(items []item) (first []bool) {
	first = make([]bool, len(items))
	fresh, opens := make([]claim, len(items)), make([]*fd.FD, len(items)) // made at once, and before others have to wait
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range items {
		it := &items[i]
		if it.file != nil {
			k.done.files = append(k.done.files, it.file)
		}
		if it.lost != nil {
			continue
		}
		if c := k.claims[it.inode]; c != nil {
			it.lost = c.add(it)
			continue
		}
		opens[i] = it.file
		fresh[i].opens = opens[i : i+1 : i+1]
		it.shared, first[i] = &fresh[i], true
		if it.inode != (inode{}) {
			k.claims[it.inode] = it.shared
		}
	}
	return first
}

// add adds an item that is the same file, and finds out which open file of it.
func (c *claim) add(it *item) error {
	it.shared, c.used = c, true
	for n, open := range c.opens {
		if it.apart {
			break
		}
		same, err := open.SameOpenFile(it.file)
		if err != nil {
			return err
		}
		if same {
			it.entry.Open = uint32(n)
			return nil
		}
	}
	it.entry.Open = uint32(len(c.opens))
	c.opens = append(c.opens, it.file)
	return nil
}

// place calls put with the session of a parcel, with a further one when that is
// full (Linux 6.19 to 7.1), and with those of others when there can be no more
// sessions, until it does not answer session.ErrLimit.
func (k *packer) place(p *parcel, put func(r *room) (uint64, error)) (*room, uint64, error) {
	if n := len(p.rooms); n > 0 {
		token, err := put(p.rooms[n-1])
		if !errors.Is(err, session.ErrLimit) {
			return p.rooms[n-1], token, err
		}
	}
	fresh, err := k.open(p.unit)
	if err != nil {
		err = fmt.Errorf("there is no session for the unit: %w", err)
	} else {
		p.rooms = append(p.rooms, fresh)
		var token uint64
		if token, err = put(fresh); err == nil {
			return fresh, token, nil
		}
	}
	// It is full when units for which there is no session have filled it meanwhile.
	// ENOMEM is what Linux 6.19 to 7.1 say of too many sessions.
	if !errors.Is(err, session.ErrLimit) && !errors.Is(err, unix.ENOMEM) {
		return nil, 0, err
	}
	k.mu.Lock()
	rooms := slices.Clone(k.rooms)
	k.mu.Unlock()
	for _, other := range rooms {
		if token, failed := put(other); !errors.Is(failed, session.ErrLimit) {
			return other, token, failed
		}
	}
	return nil, 0, err
}

// open creates the next session of a unit.
func (k *packer) open(unit string) (*room, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := kho.SessionName(unit)
	for n := 2; k.names[name]; n++ {
		name = kho.SessionName(fmt.Sprintf("%s#%d", unit, n))
	}
	s, err := k.create(name)
	if err != nil {
		return nil, err
	}
	k.names[name] = true
	r := &room{name: name, session: s, next: kho.ManifestToken + 1}
	k.rooms = append(k.rooms, r)
	return r, nil
}

// put preserves a file and returns its token.
func (r *room) put(f *fd.FD) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.preserve(f, r.next)
	if err != nil {
		return 0, err
	}
	r.next++
	return r.next - 1, nil
}

// preserve preserves a file under a token; the caller has r.mu.
func (r *room) preserve(f *fd.FD, token uint64) error {
	if r.full {
		return session.ErrLimit
	}
	err := r.session.Preserve(f, token)
	r.full = errors.Is(err, session.ErrLimit)
	r.used = r.used || err == nil
	if r.early && err == nil {
		r.held = append(r.held, held{f, token})
	}
	return err
}

// finish writes the manifests that are not written yet, now that all files are
// packed, and returns the index of the units.
func (k *packer) finish(parcels []*parcel) ([]kho.IndexUnit, error) {
	var list []kho.IndexUnit
	for _, p := range parcels {
		if p.index == nil {
			k.manifest(p)
		}
		list = append(list, *p.index)
	}
	var used []*room
	for _, r := range k.rooms {
		if r.used {
			used = append(used, r)
		} else if err := r.session.Close(); err != nil {
			return nil, err
		}
	}
	k.rooms = used
	return list, nil
}

// manifest writes a parcel's manifest and its part of the index.
func (k *packer) manifest(p *parcel) {
	m := p.manifest()
	for i := range p.items {
		m.Entries = append(m.Entries, p.items[i].settled())
	}
	p.index = summary(m)
	if p.index.Entries == 0 {
		return
	}
	at, token, err := k.place(p, func(r *room) (uint64, error) { return k.seal(r, m, p) })
	if err != nil {
		p.index = allLost(m, err)
		return
	}
	p.index.Sessions, p.index.Token = []string{at.name}, token
	for i := range m.Entries {
		if s := m.Entries[i].Session; s != "" && !slices.Contains(p.index.Sessions, s) {
			p.index.Sessions = append(p.index.Sessions, s)
		}
	}
}

// seal preserves a parcel's manifest, under the token that is its own if the session is
// its unit's own, and returns the token.
func (k *packer) seal(r *room, m *kho.Manifest, p *parcel) (uint64, error) {
	here := *m
	here.Entries = slices.Clone(m.Entries)
	for i := range here.Entries {
		if here.Entries[i].Session == r.name {
			here.Entries[i].Session = ""
		}
	}
	own := slices.Contains(p.rooms, r)
	if own && p.draft.says(&here) {
		return r.seal(p.draft.file)
	}
	f, err := here.Memfd()
	if err != nil {
		return 0, err
	}
	if r.early { // it may have to be put there again
		k.mu.Lock()
		k.done.files = append(k.done.files, f)
		k.mu.Unlock()
	} else {
		defer func() { _ = f.Close() }() // of a memfd, which has nothing to flush
	}
	if !own {
		return r.put(f)
	}
	return r.seal(f)
}

// seal preserves the session's own manifest and returns its token.
func (r *room) seal(f *fd.FD) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return kho.ManifestToken, r.preserve(f, kho.ManifestToken)
}

// settled is an item's entry when its file is packed or lost.
func (it *item) settled() kho.Entry {
	if it.lost == nil {
		it.lost = it.shared.err
	}
	if it.lost != nil {
		it.entry.Kind, it.entry.Open, it.entry.Reason = kho.KindLost, 0, reason(it.lost)
		return it.entry
	}
	it.entry.Kind, it.entry.Session, it.entry.Token = kho.KindLUO, it.shared.room.name, it.shared.token
	return it.entry
}

// summary is a manifest's part of the index, but for the sessions.
func summary(m *kho.Manifest) *kho.IndexUnit {
	unit := &kho.IndexUnit{Unit: m.Unit}
	for _, e := range m.Entries {
		if e.Kind == kho.KindLost {
			unit.Lost = append(unit.Lost, kho.LostEntry{Name: e.Name, Type: e.Type, Reason: e.Reason})
			continue
		}
		unit.Entries++
		unit.Bytes += e.Size
	}
	return unit
}

// allLost is the part of the index of a unit whose manifest cannot be preserved.
func allLost(m *kho.Manifest, err error) *kho.IndexUnit {
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Kind != kho.KindLost {
			e.Kind, e.Reason = kho.KindLost, fmt.Sprintf("the manifest of its session cannot be preserved: %v", err)
		}
	}
	return summary(m)
}

// reason says to an operator why an entry is lost.
func reason(err error) string {
	switch {
	case errors.Is(err, session.ErrUnsupported):
		return session.ErrUnsupported.Error()
	case errors.Is(err, session.ErrPreserved):
		return "a session that is not fdbridge's to use holds this file already"
	}
	return err.Error()
}
