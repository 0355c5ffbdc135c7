// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
)

// memfdType is the Type of a units.Entry that is a memfd.
const memfdType = "memfd"

// fixedSize are the seals of a memfd whose size cannot change any more.
const fixedSize = unix.F_SEAL_GROW | unix.F_SEAL_SHRINK

// settled tells whether a memfd with these seals refuses what it refuses while it is
// preserved at any time: a change in size, and F_SEAL_WRITE, for which the kernel waits in
// vain that nobody else has the pages (memfd_wait_for_pins in mm/memfd.c, Linux 7.2). That
// no hole can be punched is new to one that is not sealed against writing.
func settled(seals int) bool {
	return seals&fixedSize == fixedSize && seals&(unix.F_SEAL_SEAL|unix.F_SEAL_WRITE) != 0
}

// firstToPrepare is the first kernel that carries what is written to a memfd after it
// was preserved. Earlier ones note then which pages there is something in: of the others
// it would lose what is written to them later (mm/memfd_luo.c of Linux 6.19, and what that
// of 7.2 says of it).
var firstToPrepare = kho.Release{Major: 7}

// Prepared is what a Preserver has preserved ahead.
type Prepared struct {
	Units, FDs int
	Bytes      int64
}

// Summary says in a sentence what is prepared.
func (p *Prepared) Summary() string {
	return fmt.Sprintf("Prepared %d fds of %d units, %d bytes.", p.FDs, p.Units, p.Bytes)
}

// Prepare preserves while services run what of their stores Early allows, so that Run,
// which has to follow or Abandon, only has to do the rest. What cannot be preserved
// yet is left to Run. The device is open only while sessions are made.
//
// A memfd that is preserved can be read and written, but not changed in size, no hole
// can be punched into it (mm/shmem.c, Linux 7.2), and it cannot be sealed against
// writing. On a kernel before firstToPrepare nothing is prepared.
//
// An error means that nothing is prepared.
func (p *Preserver) Prepare(ctx context.Context) (prepared Prepared, err error) {
	p.drafts.close() // of stores that may change until the shutdown
	k := newPacker(&Preserved{})
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("prepare a live update: %w", err), k.done.Close())
			return
		}
		p.ahead = k
	}()
	if kho.ReleaseOf(p.Origin.Kernel).Before(firstToPrepare) {
		p.Log.Warning("Linux %s can preserve nothing while services run: all is preserved when they have stopped.", p.Origin.Kernel)
		return prepared, nil
	}
	var stores []*units.Store
	err = p.Stores.EachStore(ctx, func(store *units.Store) {
		if store.OptedIn() && !p.Excluded(store.Unit) && p.Early(store.Unit) != generator.EarlyNo {
			stores = append(stores, store)
		}
	})
	if errors.Is(err, units.ErrManager) {
		return prepared, err
	}
	if err != nil { // the others go on
		p.Log.Warning("Not every fd store can be prepared: %v", err)
	}
	found, err := p.early(k, stores)
	if err == nil && len(found) > 0 {
		err = p.makeRooms(ctx, k, found)
	}
	if err != nil {
		return prepared, err
	}
	prepared = k.fillAhead(ctx, found)
	return prepared, context.Cause(ctx) // what is there is to be undone soon
}

// Abandon takes everything that was prepared out of the sessions again, and closes what
// was drafted.
func (p *Preserver) Abandon() error {
	p.drafts.close()
	if p.ahead == nil {
		return nil
	}
	k := p.ahead
	p.ahead = nil
	return k.done.Close()
}

// early finds what can be preserved ahead: a parcel for each unit that has any.
func (p *Preserver) early(k *packer, stores []*units.Store) ([]*parcel, error) {
	d, err := p.Duplicator()
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }() // it was only read from
	var found []*parcel
	for _, store := range stores {
		made := &parcel{unit: store.Unit}
		files, _ := d.Dup(store.Entries) // Run says why one cannot be carried
		for i, f := range files {
			if f == nil {
				continue
			}
			e := &store.Entries[i]
			it := item{file: f.FD, inode: inode{f.Dev, f.Ino}, entry: kho.Entry{Size: f.Size}}
			if e.Type() != memfdType || !settled(f.Seals) && p.Early(store.Unit) != generator.EarlyYes || !k.claimEarly(&it) {
				_ = f.FD.Close() // Run opens it anew
				continue
			}
			made.items = append(made.items, it)
		}
		if len(made.items) > 0 {
			found = append(found, made)
		}
	}
	return found, nil
}

// makeRooms makes a session for each of the parcels.
func (p *Preserver) makeRooms(ctx context.Context, k *packer, parcels []*parcel) (err error) {
	wait, stop := context.WithTimeout(ctx, deviceTimeout)
	defer stop()
	k.device, err = session.OpenWait(wait, p.Kernel, p.Device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.device.Close()) }()
	for _, parcel := range parcels {
		room, err := k.open(parcel.unit)
		if err != nil {
			return fmt.Errorf("a session for %s: %w", parcel.unit, err)
		}
		room.early = true
		k.early[parcel.unit] = room
	}
	return nil
}

// fillAhead puts the parcels into their sessions, several at a time, until ctx ends. What
// the kernel refuses is left to Run, which says why.
func (k *packer) fillAhead(ctx context.Context, parcels []*parcel) (prepared Prepared) {
	var mu sync.Mutex
	queue := make(chan func())
	workers := work(queue)
	for _, parcel := range parcels {
		queue <- func() {
			fds, bytes := k.putAhead(ctx, parcel)
			mu.Lock()
			defer mu.Unlock()
			prepared.Units, prepared.FDs, prepared.Bytes = prepared.Units+min(fds, 1), prepared.FDs+fds, prepared.Bytes+bytes
		}
	}
	close(queue)
	workers.Wait()
	return prepared
}

func (k *packer) putAhead(ctx context.Context, p *parcel) (fds int, bytes int64) {
	for i := range p.items {
		if ctx.Err() != nil {
			break
		}
		it := &p.items[i]
		c := it.shared
		c.room = k.early[p.unit]
		if c.token, c.err = c.room.put(it.file); c.err != nil {
			k.unclaim(it)
			continue
		}
		fds, bytes = fds+1, bytes+it.entry.Size
	}
	return fds, bytes
}

// claimEarly claims an item's file, unless another has.
func (k *packer) claimEarly(it *item) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.claims[it.inode] != nil {
		return false
	}
	k.done.files = append(k.done.files, it.file)
	it.shared = &claim{opens: []*fd.FD{it.file}, early: true}
	k.claims[it.inode] = it.shared
	return true
}

// unclaim takes the claim back of an item whose file cannot be preserved yet.
func (k *packer) unclaim(it *item) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.claims, it.inode)
}

// renew takes what was preserved ahead and is in no store any more out of its
// sessions, when all stores are captured. The kernel takes nothing out of a session:
// it is made anew, with the rest under the same tokens, so that what manifests say of
// it stays true.
func (k *packer) renew() error {
	gone := map[*room]map[*fd.FD]bool{}
	for _, c := range k.claims {
		if c.early && !c.used {
			if gone[c.room] == nil {
				gone[c.room] = map[*fd.FD]bool{}
			}
			gone[c.room][c.opens[0]] = true
		}
	}
	for r, files := range gone {
		if err := k.makeAnew(r, files); err != nil {
			return fmt.Errorf("make session %s anew: %w", r.name, err)
		}
	}
	return nil
}

func (k *packer) makeAnew(r *room, without map[*fd.FD]bool) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.session.Close(); err != nil {
		return err
	}
	if r.session, err = k.create(r.name); err != nil {
		return err
	}
	held := r.held
	r.held, r.used, r.full = nil, false, false
	for _, h := range held {
		if without[h.file] {
			continue
		}
		if err := r.preserve(h.file, h.token); err != nil {
			return err
		}
	}
	return nil
}
