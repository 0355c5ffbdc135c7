// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"sync"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

// drafts are manifests that were written while services still stop.
type drafts struct {
	mu   sync.Mutex
	list map[string]*draft // by unit
}

// draft is a manifest as it will be if nothing changes any more and the kernel takes all
// of its files into one session.
type draft struct {
	manifest *kho.Manifest
	file     *fd.FD
}

// Draft writes the manifest of a store that was seen while services still stop, with a file
// for each entry, which stays the caller's, so that Run has that much less to do. What
// cannot be written now Run writes, or says why not.
func (p *Preserver) Draft(store *units.Store, files []*units.File) {
	if p.ahead != nil && p.ahead.early[store.Unit] != nil {
		return // some of its files have other tokens already
	}
	made := p.parcel(store)
	made.items = items(store.Entries)
	duplicate(made, store.Entries, func([]units.Entry) ([]*units.File, []error) { return files, make([]error, len(files)) })
	m := made.manifest()
	for i := range made.items {
		e := made.items[i].entry
		e.Kind, e.Token = kho.KindLUO, kho.ManifestToken+1+uint64(i)
		m.Entries = append(m.Entries, e)
	}
	f, err := m.Memfd()
	if err != nil {
		return
	}
	p.drafts.mu.Lock()
	defer p.drafts.mu.Unlock()
	if p.drafts.list == nil {
		p.drafts.list = map[string]*draft{}
	}
	if old := p.drafts.list[store.Unit]; old != nil {
		_ = old.file.Close() // of a memfd, which has nothing to flush
	}
	p.drafts.list[store.Unit] = &draft{m, f}
}

// of returns the draft for a unit, nil without one. It stays the drafts'.
func (d *drafts) of(unit string) *draft {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list[unit]
}

// close closes all drafts: those that are in sessions stay there.
func (d *drafts) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, draft := range d.list {
		_ = draft.file.Close() // as above
	}
	d.list = nil
}

// says tells whether a manifest is what was drafted.
func (d *draft) says(m *kho.Manifest) bool { return d != nil && d.manifest.Equal(m) }
