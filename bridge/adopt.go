// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// adopt takes over fdbridged's store: the index, and the rest to be sorted
// when the index has been read.
func (h *Holder) adopt(passed []notify.Passed) {
	for _, p := range passed {
		switch {
		case p.Name == indexName && h.sessions[kho.IndexSession] == nil:
			h.sessions[kho.IndexSession] = session.Adopt(h.Kernel, p.FD)
		case strings.HasPrefix(p.Name, keptPrefix) && h.kept[p.Name] == nil:
			h.kept[p.Name] = p.FD
		case isBundle(p.Name):
			h.adoptBundle(p)
		case p.Name == retrievingName:
			h.cut = true
			_ = p.FD.Close() // a mark: the store has its own
		default:
			h.adopted = append(h.adopted, p)
		}
	}
}

// rescue takes over what a preserve that was rolled back has left elsewhere,
// and lets go of it there once all of it is in fdbridged's own store. With an error,
// what was had is taken over, and the next Holder finds it there once more.
func (h *Holder) rescue(ctx context.Context) error {
	if h.Rescued == nil {
		return nil
	}
	files, letGo, err := h.Rescued(ctx)
	if len(files) == 0 {
		return err
	}
	h.mu.Lock()
	for _, p := range files {
		if !strings.HasPrefix(p.Name, keptPrefix) || h.kept[p.Name] != nil {
			err = errors.Join(err, p.FD.Close()) // there since an earlier try
			continue
		}
		h.kept[p.Name] = p.FD
		err = errors.Join(err, h.Keeper.Store(p.Name, p.FD))
	}
	h.mu.Unlock()
	if err == nil {
		err = h.Keeper.Barrier()
	}
	if err != nil {
		return err
	}
	return letGo()
}

// readIndexed reads the index, if it is there and was not read yet, and sorts what
// was adopted by what is in it.
func (h *Holder) readIndexed() error {
	if h.index != nil || h.sessions[kho.IndexSession] == nil {
		return nil
	}
	index, err := readIndex(h.sessions[kho.IndexSession])
	if err != nil {
		return err
	}
	h.index = index
	h.earlier = h.sortAdopted()
	h.strangers()
	h.takeStock(h.earlier)
	return nil
}

// sortAdopted finds out what was adopted, and returns the names of the sessions among it.
// What means nothing to this fdbridged remains.
func (h *Holder) sortAdopted() (adopted map[string]bool) {
	sessions := map[string]string{}
	for _, u := range h.index.Units {
		for _, name := range u.Sessions {
			sessions[sessionName(name)] = name
			sessions[name] = name // in a bundle
		}
	}
	for _, s := range h.index.Services {
		sessions[sessionName(s.Session)] = s.Session
	}
	adopted = map[string]bool{}
	rest := h.adopted[:0]
	for _, p := range h.adopted {
		name, known := sessions[p.Name]
		switch {
		case known && h.sessions[name] == nil:
			h.sessions[name], adopted[name] = session.Adopt(h.Kernel, p.FD), true
			continue
		case strings.HasPrefix(p.Name, begunPrefix):
			hash, invocation := begunOf(p.Name)
			h.begun[hash] = invocation
		case strings.HasPrefix(p.Name, donePrefix):
			h.done[p.Name] = true
		case strings.HasPrefix(p.Name, assignedPrefix) && h.adoptAssigned(p):
		default:
			rest = append(rest, p)
			continue
		}
		_ = p.FD.Close() // a mark: the store has its own
	}
	h.adopted = rest
	return adopted
}

// strangers reports what is in fdbridged's store and means nothing to this
// fdbridged. It stays there.
func (h *Holder) strangers() {
	for _, p := range h.adopted {
		h.problem(journal.About{FD: p.Name}, "The fd %q in fdbridged's store is none of what was handed over, and is left there", p.Name)
	}
}
