// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

// list answers OpList: all units that have opted in or that fds are held for.
func (s *Server) list(ctx context.Context, conn *wire.Conn) error {
	found, err := s.units(ctx)
	if err := s.outcome(ctx, conn, err); err != nil {
		return err
	}
	for i := range found {
		if err := conn.Send(wire.Answer{Unit: &found[i]}, nil); err != nil {
			return err
		}
	}
	return conn.Send(wire.Answer{End: true}, nil)
}

// outcome bounds an answer anew, as PID 1 may have taken longer than a client may, and
// sends why there is none, which it returns.
func (s *Server) outcome(ctx context.Context, conn *wire.Conn, failed error) error {
	if err := limit(ctx, conn, s.RequestTimeout); err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil {
		return errors.Join(failed, conn.Send(wire.Answer{Error: failed.Error()}, nil))
	}
	return nil
}

func (s *Server) units(ctx context.Context) ([]wire.Unit, error) {
	optedIn, err := s.PID1.OptedIn(ctx, nil)
	if err != nil {
		return nil, err
	}
	stores, err := s.PID1.Stores(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]*wire.Unit{}
	for _, o := range optedIn {
		if o.Unit != OwnUnit && !s.Excluded(o.Unit) {
			found[o.Unit] = &wire.Unit{Unit: o.Unit, State: wire.StateOptedIn}
		}
	}
	s.addHeld(found)
	addStored(found, stores)
	list := make([]wire.Unit, 0, len(found))
	for _, u := range found {
		list = append(list, *u)
	}
	slices.SortFunc(list, func(a, b wire.Unit) int { return strings.Compare(a.Unit, b.Unit) })
	return list, nil
}

func addStored(found map[string]*wire.Unit, stores []units.Store) {
	for _, store := range stores {
		if u := found[store.Unit]; u != nil {
			u.Stored = len(store.Entries)
		}
	}
}

// addHeld adds what the last live update brought and lost.
func (s *Server) addHeld(found map[string]*wire.Unit) {
	index := s.Holder.Index()
	if index == nil {
		return
	}
	of := func(unit string) *wire.Unit {
		if found[unit] == nil {
			found[unit] = &wire.Unit{Unit: unit}
		}
		return found[unit]
	}
	for _, unit := range s.Holder.Units() {
		f := of(unit)
		f.As = s.Holder.assignedTo(unit)
		for i, p := range s.Holder.Held(unit) {
			if i == 0 {
				f.State, f.Session = wire.StateHeld, p.Sessions[0]
			}
			f.Held, f.HeldBytes = f.Held+p.Entries, f.HeldBytes+p.Bytes
		}
	}
	for _, own := range s.Holder.OwnSessions() {
		f := of(own.Unit)
		f.State = wire.StateHeld
		f.Sessions++
	}
	for _, u := range index.Totals() {
		f := found[u.Unit]
		if f == nil {
			continue
		}
		f.Lost = u.Lost
		switch {
		case u.Entries == 0:
			f.Outcome = wire.OutcomeLost
		case f.Held == 0:
			f.Outcome = s.Holder.outcomeOf(u.Unit)
		}
	}
}

// status answers OpStatus.
func (s *Server) status(conn *wire.Conn) error {
	status := s.Machine
	index := s.Holder.Index()
	if index != nil {
		status.Handover = handover(index)
		s.Holder.steps(status.Handover)
		status.Held, status.Sessions = len(s.Holder.Units()), len(s.Holder.OwnSessions())
	}
	status.Unknown = text(s.Holder.state())
	if err := conn.Send(wire.Answer{Status: &status}, nil); err != nil {
		return err
	}
	problems := s.Holder.Problems()
	lost, err := lostUpdate(s.LostFile)
	if err != nil {
		lost = "What was lost with a live update that did not arrive cannot be said: " + err.Error()
	}
	if lost != "" {
		problems = append(problems, lost)
	}
	for _, problem := range problems {
		if err := conn.Send(wire.Answer{Problem: problem}, nil); err != nil {
			return err
		}
	}
	if index != nil {
		for _, c := range s.carried(index) {
			if err := conn.Send(wire.Answer{Carried: &c}, nil); err != nil {
				return err
			}
		}
		for _, u := range index.Units {
			for _, l := range u.Lost {
				lost := wire.Lost{Unit: u.Unit, Name: l.Name, Type: l.Type, Reason: l.Reason}
				if err := conn.Send(wire.Answer{Lost: &lost}, nil); err != nil {
					return err
				}
			}
		}
	}
	return conn.Send(wire.Answer{End: true}, nil)
}

// handover is what an index says of a live update in all.
func handover(index *kho.Index) *wire.Handover {
	h := &wire.Handover{
		Time: index.Origin.Time, Release: index.Origin.Kernel, BootID: index.Origin.BootID,
		DurationUS: index.Duration.Microseconds(),
	}
	for _, u := range index.Totals() {
		if u.Entries > 0 {
			h.Units++
		}
		h.Entries, h.Bytes, h.Lost = h.Entries+u.Entries, h.Bytes+u.Bytes, h.Lost+u.Lost
	}
	return h
}
