// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

// giveUpTimeout bounds how long PID 1 may take to tell what is lost.
const giveUpTimeout = 10 * time.Second

// GiveUp logs what is not carried by a live update that goes on though Run has
// failed, and why, and records it for the next boot, unless the service manager may carry it.
func (p *Preserver) GiveUp(ctx context.Context, why error) {
	ctx, stop := context.WithTimeout(ctx, giveUpTimeout)
	defer stop()
	by := ""
	if shared, err := p.Stores.Carries(ctx); err == nil && shared {
		by = " by fdbridge, but maybe by the service manager"
	}
	p.Log.Err("No fd store will be carried into the next kernel%s: %v", by, why)
	index := kho.Index{Origin: p.Origin}
	var own *units.Store
	var rescued []units.Entry
	err := p.Stores.EachStore(ctx, func(s *units.Store) {
		switch {
		case s.Unit == OwnUnit:
			own = s
		case s.Unit == PreserveUnit:
			rescued = s.Entries
		case s.OptedIn() && !p.Excluded(s.Unit):
			index.Units = append(index.Units, lostStore(s))
		}
	})
	stores, opened := index.Units, 0
	if own != nil {
		var held []kho.IndexUnit
		held, opened = p.giveUpOwn(own, rescued)
		index.Units = slices.Concat(stores, held)
	}
	if err != nil {
		p.Log.Err("Not every fd store can be read, there may be more that is not carried: %v", err)
	}
	index.Messages = p.Warnings() // without those of what the index has by itself
	for _, u := range stores {
		var names []string
		for _, lost := range u.Lost {
			names = append(names, fmt.Sprintf("%q (%s)", lost.Name, lost.Type))
		}
		p.Log.Err("%s: Not carried%s are the fds %s", u.Unit, by, strings.Join(names, ", "))
	}
	if by == "" && len(index.Units)+opened > 0 {
		p.record(&index)
	}
}

// lostStore is what an index says of a store of which nothing is carried.
func lostStore(s *units.Store) kho.IndexUnit {
	u := kho.IndexUnit{Unit: s.Unit}
	for i := range s.Entries {
		u.Lost = append(u.Lost, kho.LostEntry{Name: s.Entries[i].Name, Type: s.Entries[i].Type(), Reason: "nothing could be preserved"})
	}
	return u
}

// giveUpOwn logs what is lost of fdbridged's store, and returns what was held for units and how
// many sessions were open. rescued is what was taken out of held sessions: see finishHeld.
func (p *Preserver) giveUpOwn(own *units.Store, rescued []units.Entry) (held []kho.IndexUnit, open int) {
	for i := range own.Entries {
		if strings.HasPrefix(own.Entries[i].Name, openPrefix) {
			open++
		}
	}
	if open > 0 {
		p.Log.Err("Not carried are %d sessions that services have opened, and what fdbridged holds", open)
	}
	held, err := p.giveUpHeld(own, rescued)
	if err != nil {
		p.Log.Err("There may be more that is held for units and not carried: %v", err)
	}
	return held, open
}

// giveUpHeld logs what is lost of what fdbridged holds for units, and returns it.
func (p *Preserver) giveUpHeld(own *units.Store, rescued []units.Entry) (held []kho.IndexUnit, err error) {
	d, err := p.Duplicator()
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }() // it was only read from
	left, err := p.takeOver(own, rescued, d)
	defer left.close()
	index, failed := left.index()
	if index != nil {
		for i := range index.Units {
			if u := &index.Units[i]; left.has(u) && !left.finished(u) {
				p.Log.Err("%s: Not carried are the %d fds that are held for it", u.Unit, u.Entries)
				held = append(held, *u)
			}
		}
	}
	return held, errors.Join(err, failed)
}
