// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

// show answers OpShow: what a unit has stored, and what is held for it.
func (s *Server) show(ctx context.Context, conn *wire.Conn, unit string) error {
	stored, err := s.stored(ctx, unit)
	var silent error // other errors leave something to show
	if errors.Is(err, units.ErrManager) {
		silent = err
	}
	if err := s.outcome(ctx, conn, silent); err != nil {
		return err
	}
	held, problems := s.Holder.entries(unit)
	for _, err := range []error{err, s.Holder.state(unit)} {
		if err != nil {
			problems = append(problems, err)
		}
	}
	for _, entry := range append(stored, held...) {
		if err := conn.Send(wire.Answer{Entry: &entry}, nil); err != nil {
			return err
		}
	}
	for _, problem := range problems {
		if err := conn.Send(wire.Answer{Problem: fmt.Sprintf("%s: %v", unit, problem)}, nil); err != nil {
			return err
		}
	}
	return conn.Send(wire.Answer{End: true}, nil)
}

// stored returns what is in a unit's store, with what PID 1 does not tell of its
// files. The error is PID 1's, which tells nothing of a unit that is masked, say.
func (s *Server) stored(ctx context.Context, unit string) ([]wire.Entry, error) {
	list, err := s.PID1.Entries(ctx, unit)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	entries := make([]wire.Entry, len(list))
	var regular []units.Entry
	var of []*wire.Entry
	for i := range list {
		e := &list[i]
		entries[i] = wire.Entry{Name: e.Name, Place: wire.PlaceStored, Type: e.Type(), Flags: uint32(e.Flags)}
		if e.Mode&unix.S_IFMT == unix.S_IFREG { // the rest has neither size nor position
			regular, of = append(regular, *e), append(of, &entries[i])
		}
	}
	s.look(regular, of)
	return entries, nil
}

// look fills in what is to be seen of regular files.
func (s *Server) look(list []units.Entry, entries []*wire.Entry) {
	if len(list) == 0 {
		return
	}
	duplicator, err := s.Duplicator()
	if err != nil {
		for _, entry := range entries {
			entry.Reason = err.Error()
		}
		return
	}
	defer func() { _ = duplicator.Close() }() // it was only read from
	files, failed := duplicator.Dup(list)
	for i, file := range files {
		if file == nil {
			entries[i].Reason = text(failed[i])
			continue
		}
		entries[i].Size, entries[i].Position = &file.Size, &file.Position
		entries[i].Seals = kho.Seals(file.Seals).Names()
		_ = file.FD.Close() // it was only looked at
	}
}

// entries returns what the manifests of a unit's parcels say, and why some
// cannot be read; and the sessions of its own that it has not taken over.
func (h *Holder) entries(unit string) (list []wire.Entry, problems []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.held {
		if p.Unit != unit {
			continue
		}
		m, err := h.manifest(p)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		for i := range m.Entries {
			list = append(list, heldEntry(&m.Entries[i], p.Sessions[0]))
		}
	}
	for _, s := range h.ownSessions(unit) {
		list = append(list, wire.Entry{Name: s.Name, Place: wire.PlaceHeld, Type: sessionType, Flags: unix.O_RDWR, Session: s.Session})
	}
	return list, problems
}

// heldEntry is an entry of a manifest that is in session.
func heldEntry(e *kho.Entry, session string) wire.Entry {
	entry := wire.Entry{
		Name: e.Name, Place: wire.PlaceHeld, Kind: string(e.Kind), Type: e.Type, Flags: e.Flags, Reason: e.Reason,
	}
	if e.Kind == kho.KindLost {
		entry.Place = wire.PlaceLost
		return entry
	}
	entry.Size, entry.Position, entry.Seals = &e.Size, &e.Position, e.Seals.Names()
	if e.Token != 0 {
		entry.Session, entry.Token = e.SessionOf(session), e.Token
	}
	return entry
}

// inspect answers OpInspect: the manifests in a session, or the index. Whoever
// gets them could change one on a kernel before 7.1, which carries no seals; it
// is root.
func (s *Server) inspect(conn *wire.Conn, name string) error {
	documents, err := s.Holder.documents(name)
	if err != nil {
		return conn.Send(wire.Answer{Error: err.Error()}, nil)
	}
	for _, d := range documents {
		if err == nil {
			err = conn.Send(wire.Answer{Document: &wire.Document{Unit: d.unit, Token: d.token}}, d.file)
		}
		err = errors.Join(err, d.file.Close())
	}
	if err != nil {
		return err
	}
	return conn.Send(wire.Answer{End: true}, nil)
}

// document is a manifest, or the index.
type document struct {
	unit  string
	token uint64
	file  *fd.FD
}

// documents returns those that are in a session that is held; the caller owns
// their files.
func (h *Holder) documents(name string) (list []document, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if index := h.sessions[kho.IndexSession]; name == kho.IndexSession && index != nil {
		f, err := index.RetrieveFD(kho.ManifestToken)
		return []document{{"", kho.ManifestToken, f}}, err
	}
	elsewhere := ""
	for _, p := range h.held {
		if p.Sessions[0] != name {
			if slices.Contains(p.Sessions, name) {
				elsewhere = fmt.Sprintf("; there are files of %s in it, whose manifest is in the session %s", p.Unit, p.Sessions[0])
			}
			continue
		}
		f, failed := h.retrieve(p.manifest())
		if err = errors.Join(err, failed); failed == nil {
			list = append(list, document{p.Unit, p.Token, f})
		}
	}
	if len(list) == 0 && err == nil {
		err = fmt.Errorf("no manifest is held in a session %q%s", name, elsewhere)
	}
	if err != nil {
		for _, d := range list {
			_ = d.file.Close() // it was not even read from
		}
		return nil, err
	}
	return list, nil
}

// note records how long a unit's delivery took.
func (s *Server) note(unit string, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took[unit] += took
}

// carried returns what an index says of each unit, in its order, and what has
// become of it.
func (s *Server) carried(index *kho.Index) []wire.Carried {
	held := s.Holder.Units()
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []wire.Carried
	for _, u := range index.Totals() {
		if u.Entries > 0 {
			list = append(list, wire.Carried{
				Unit: u.Unit, Entries: u.Entries, Bytes: u.Bytes, Held: slices.Contains(held, u.Unit), DeliverUS: s.took[u.Unit].Microseconds(),
			})
		}
	}
	return list
}

// steps fills in how long the steps of a live update took in this kernel.
func (h *Holder) steps(handover *wire.Handover) {
	h.mu.Lock()
	restored := h.restored
	h.mu.Unlock()
	if restored.start.IsZero() {
		return
	}
	handover.RestoreUS = restored.took.Microseconds()
	preserved := handover.Time.Add(time.Duration(handover.DurationUS) * time.Microsecond)
	handover.ReplaceUS = max(0, restored.start.Sub(preserved).Microseconds())
}
