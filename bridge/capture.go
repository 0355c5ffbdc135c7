// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

const (
	// captureTries is how often a store that changes while it is captured is
	// read, before what was not found is lost.
	captureTries = 3
	// queued is how many stores can wait for a processor, more than there will be:
	// the time until PID 1 has answered is bounded, and not to be spent on waiting.
	queued = 1 << 16
)

// parcel is what is carried for a unit under one manifest, and where it went.
type parcel struct {
	unit     string
	identity kho.Identity
	origin   kho.Origin
	unknown  []kho.Member // of its manifest, when that is carried on
	items    []item
	rooms    []*room        // its sessions, the one that is filled at last
	index    *kho.IndexUnit // set when the manifest is written
	ahead    []*units.File  // its items' files, if they were duplicated ahead, until it is captured
	draft    *draft         // of its manifest, if there is one
	services []kho.Service  // sessions of its own in its store, which are not among the items
	// leaves says that sessions are left to PID 1, and left that there are some.
	leaves, left bool
}

// item is one entry of a parcel.
type item struct {
	entry   kho.Entry
	file    *fd.FD // nil when it is lost
	inode   inode  // of the file
	apart   bool   // it is an open file of its own, though its file is another's
	guessed bool   // it may be another open file of the same inode
	shared  *claim // what is preserved for it and for all others that are the same file
	lost    error  // why it cannot be carried
}

// inode identifies a file. It is zero for one of those that share an inode
// with all others of their kind, as eventfds do.
type inode struct{ dev, ino uint64 }

// lose makes all items lost, of a parcel that is not packed.
func (p *parcel) lose(err error) {
	p.close()
	for i := range p.items {
		p.items[i].lost = err
	}
}

// loses tells whether anything of a parcel, if there is one, is lost already.
func (p *parcel) loses() bool {
	return p != nil && slices.ContainsFunc(p.items, func(it item) bool { return it.lost != nil })
}

// ours returns those entries of the store that are not left to PID 1.
func (p *parcel) ours(entries []units.Entry) []units.Entry {
	if !p.leaves {
		return entries
	}
	ours := slices.DeleteFunc(slices.Clone(entries), func(e units.Entry) bool { return e.Session() })
	p.left = len(ours) < len(entries)
	return ours
}

// nothingLeft tells whether there is nothing in the store, when its manifest is
// written, that PID 1 could carry: all is carried, but for what the kernel refuses.
func (p *parcel) nothingLeft() bool {
	refused := 0
	for i := range p.items {
		if errors.Is(p.items[i].lost, session.ErrUnsupported) {
			refused++
		}
	}
	return !p.left && p.index.Entries+refused == len(p.items)
}

// close closes the items' files, of a parcel that is not packed.
func (p *parcel) close() {
	for i := range p.items {
		_ = p.items[i].file.Close() // of memfds, which have nothing to flush
		p.items[i].file = nil
	}
	for _, f := range p.ahead {
		_ = f.FD.Close() // as above
	}
	p.ahead = nil
}

// closeAll closes parcels that are not packed.
func closeAll(parcels []*parcel) {
	for _, parcel := range parcels {
		parcel.close()
	}
}

// stores is what was found in PID 1.
type stores struct {
	parcels []*parcel
	own     *units.Store  // fdbridged's, nil when it is empty
	rescued []units.Entry // in the store of the service that preserves
	// duplicator and sessions are of PID 1, opened when they are first asked for.
	duplicator func() (Duplicator, error)
	sessions   func() (*Sessions, error)
	looked     Duplicator // what they have returned
	open       *Sessions
	blind      error
	// shared says that PID 1 carries what it finds in stores, too, others that it may find
	// something in those that are not captured, and unsure that what it finds in those that
	// are may be newer.
	shared, others, unsure bool
}

// nothingLeft tells whether there is nothing in any store that PID 1 could carry, when the
// manifests are written.
func (s *stores) nothingLeft() bool {
	return !s.others && !slices.ContainsFunc(s.parcels, func(p *parcel) bool { return !p.nothingLeft() })
}

// carriable tells whether PID 1 may be able to carry an entry: what the kernel takes grows
// from version to version, but for these.
func carriable(e units.Entry) bool {
	return !slices.Contains([]string{"socket", "pipe", "inotify"}, e.Type())
}

// finished returns the units in whose stores PID 1 is to find nothing any more:
// those with nothing left, and fdbridged's.
func (s *stores) finished() (units []string) {
	for _, p := range s.parcels {
		if p.nothingLeft() && !s.unsure {
			units = append(units, p.unit)
		}
	}
	if s.own != nil {
		units = append(units, OwnUnit)
	}
	return units
}

// close closes what was only read from.
func (s *stores) close() {
	s.open.Close()
	if s.looked != nil {
		_ = s.looked.Close()
	}
}

// openers sets what opens a duplicator and sessions.
func (s *stores) openers(duplicator func() (Duplicator, error), kernel session.Kernel, device *session.Device) {
	s.duplicator = sync.OnceValues(func() (Duplicator, error) {
		d, err := duplicator()
		if s.blind = err; err != nil {
			return nil, err
		}
		s.looked = d
		return d, nil
	})
	s.sessions = sync.OnceValues(func() (*Sessions, error) {
		d, err := s.duplicator()
		if err != nil {
			return nil, err
		}
		s.open, err = OpenSessions(kernel, d, device.HasOutgoing)
		return s.open, err
	})
}

// carry captures and packs the stores of all opted-in units, each as soon as
// it is told of and as many at a time as there are processors. The
// parcels are in the order of their units' names. The caller closes what it
// returns, which is nothing with an error.
func (p *Preserver) carry(ctx context.Context, packer *packer) (*stores, error) {
	found := &stores{}
	var err error
	if found.shared, err = p.Stores.Carries(ctx); err != nil {
		return nil, err
	}
	found.openers(p.Duplicator, p.Kernel, packer.device)
	queue := make(chan func(), queued)
	workers := work(queue)
	err = p.Stores.EachStore(ctx, func(store *units.Store) {
		if store.Unit == OwnUnit {
			found.own = store
			queue <- func() { _, _ = found.duplicator() } // it will be needed
		}
		if store.Unit == PreserveUnit {
			found.rescued = store.Entries
		}
		if !store.OptedIn() || store.Unit == OwnUnit || store.Unit == PreserveUnit {
			return
		}
		if p.Excluded(store.Unit) {
			found.others = found.others || slices.ContainsFunc(store.Entries, carriable)
			return
		}
		made, entries := p.captured(store, packer, found.shared)
		found.others = found.others || made.left || !store.Kept // what runs on can store more up to the kexec
		if len(made.items) == 0 {
			return
		}
		found.parcels = append(found.parcels, made)
		made.ahead = p.Stores.Files(store)
		queue <- func() {
			entries := p.capture(ctx, made, entries, found.duplicator)
			made.takeServices(entries, found.sessions)
			packer.pack(made)
		}
	})
	close(queue)
	workers.Wait()
	if err = p.captureEnded(found, packer, errors.Join(err, found.blind)); err != nil {
		found.close()
		return nil, err
	}
	return found, nil
}

// captureEnded looks at what was captured, when err is why that is not all.
func (p *Preserver) captureEnded(found *stores, packer *packer, err error) error {
	if err != nil && (!p.Partly || errors.Is(err, units.ErrStale)) || found.blind != nil {
		return err
	}
	slices.SortFunc(found.parcels, func(a, b *parcel) int { return strings.Compare(a.unit, b.unit) })
	p.warnOfGuesses(found.parcels)
	if err := packer.renew(); err != nil {
		return fmt.Errorf("%w: %w", errPrepared, err)
	}
	if err != nil { // the others go on
		p.Log.Err("Not every fd store can be read, what is in the others will be lost: %v", err)
	}
	left := func(p *parcel) bool { return p.left } // some more may have been found when it was captured
	found.others = found.others || err != nil || slices.ContainsFunc(found.parcels, left)
	found.unsure = errors.Is(err, units.ErrUnsure)
	return nil
}

// warnOfGuesses logs what may have another open file's position.
func (p *Preserver) warnOfGuesses(parcels []*parcel) {
	for _, parcel := range parcels {
		for _, it := range parcel.items {
			if it.guessed {
				p.Log.Warning("%s: PID 1 has several open files of what the fd %q is, and its position may be that of another.", parcel.unit, it.entry.Name)
			}
		}
	}
}

// work does what is put into a queue until that is closed, as much at a time as there
// are processors. The caller waits for the end.
func work(queue <-chan func()) *sync.WaitGroup {
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for do := range queue {
				do()
			}
		})
	}
	return &workers
}

// captured makes a parcel of a unit's store, whose files are still to be had, and
// returns the entries that they are of.
func (p *Preserver) captured(store *units.Store, packer *packer, leaves bool) (made *parcel, entries []units.Entry) {
	made = p.parcel(store)
	made.leaves, made.draft = leaves, p.drafts.of(store.Unit)
	if early := packer.early[store.Unit]; early != nil {
		made.rooms = []*room{early}
	}
	entries = made.ours(store.Entries)
	made.items = items(entries)
	return made, entries
}

// parcel makes a parcel of a unit's store without anything in it.
func (p *Preserver) parcel(store *units.Store) *parcel {
	return &parcel{unit: store.Unit, identity: identityOf(store), origin: p.Origin}
}

// manifest makes the parcel's manifest without entries.
func (p *parcel) manifest() *kho.Manifest {
	return &kho.Manifest{
		Unit: p.unit, Identity: p.identity, Origin: p.origin, Entries: make([]kho.Entry, 0, len(p.items)), Unknown: p.unknown,
	}
}

func items(entries []units.Entry) []item {
	list := make([]item, len(entries))
	for i := range entries {
		e := &entries[i]
		list[i].entry = kho.Entry{Name: e.Name, Type: e.Type(), Flags: uint32(e.Flags)}
	}
	return list
}

// renewed is the Dup of a Duplicator for files that were duplicated ahead.
func (p *parcel) renewed([]units.Entry) ([]*units.File, []error) {
	files := p.ahead
	p.ahead = nil
	failed := make([]error, len(files))
	for i, f := range files {
		if failed[i] = f.Renew(); failed[i] != nil {
			_ = f.FD.Close()
			files[i] = nil
		}
	}
	return files, failed
}

// capture has the files of a store, unless ctx has ended, and returns its
// entries. A store that has changed since it was listed is listed again, and PID 1's
// fds with it.
func (p *Preserver) capture(ctx context.Context, parcel *parcel, entries []units.Entry, duplicator func() (Duplicator, error)) []units.Entry {
	if ctx.Err() != nil {
		parcel.lose(context.Cause(ctx))
		return entries
	}
	dup := parcel.renewed
	if parcel.ahead == nil {
		d, err := duplicator()
		if err != nil {
			parcel.lose(err)
			return entries
		}
		dup = d.Dup
	}
	changed := duplicate(parcel, entries, dup)
	for try := 1; changed && try < captureTries; try++ {
		parcel.close()
		fresh, err := p.Stores.Entries(ctx, parcel.unit)
		if err != nil {
			parcel.lose(fmt.Errorf("the store has changed and cannot be listed again: %w", err))
			return entries
		}
		again, err := p.Duplicator()
		if err != nil {
			parcel.lose(err)
			return entries
		}
		entries = parcel.ours(fresh)
		parcel.items = items(entries)
		changed = duplicate(parcel, entries, again.Dup)
		_ = again.Close() // it was only read from
	}
	return entries
}

// duplicate gets each entry's file and tells whether one was not there any more.
// Sessions, which the kernel preserves in no other, are left to takeServices.
func duplicate(parcel *parcel, entries []units.Entry, dup func([]units.Entry) ([]*units.File, []error)) (changed bool) {
	files, failed := make([]*units.File, len(entries)), make([]error, len(entries))
	var places []int
	var others []units.Entry
	for i := range entries {
		if entries[i].Session() {
			failed[i] = session.ErrUnsupported
			continue
		}
		places, others = append(places, i), append(others, entries[i])
	}
	found, missing := dup(others)
	for n, i := range places {
		files[i], failed[i] = found[n], missing[n]
	}
	for i, file := range files {
		it := &parcel.items[i]
		if it.lost = failed[i]; file == nil {
			changed = changed || errors.Is(failed[i], units.ErrChanged)
			continue
		}
		it.file, it.guessed = file.FD, file.Guessed
		if !entries[i].Anonymous() {
			it.inode, it.entry.Flags = inode{file.Dev, file.Ino}, uint32(file.Flags)
		}
		it.entry.Size, it.entry.Position, it.entry.Seals = file.Size, file.Position, kho.Seals(file.Seals)
		it.entry.Mode, it.entry.UID, it.entry.GID = file.Mode, file.UID, file.GID
	}
	return changed
}
