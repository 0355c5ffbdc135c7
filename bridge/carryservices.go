// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// errCame says why a service's session is lost: the kernel carries only what was
// preserved in it anew, and only its service knows the tokens.
var errCame = errors.New("it has come through the last live update, and its unit is not done with it: " +
	"what is still in it cannot be carried on")

// Sessions are the sessions that PID 1 holds: the services' own, and the index.
type Sessions struct {
	outgoing, incoming map[string]*session.Session // by name
	index              *session.Session            // nil when there is none
}

// OpenSessions duplicates the sessions out of PID 1. The caller closes them. hasOutgoing
// is asked what session.Device's tells, where the kernel does not tell of a session.
func OpenSessions(kernel session.Kernel, duplicator Duplicator, hasOutgoing func(name string) (bool, error)) (*Sessions, error) {
	found, err := duplicator.Sessions()
	if err != nil {
		return nil, err
	}
	s := &Sessions{outgoing: map[string]*session.Session{}, incoming: map[string]*session.Session{}}
	for _, f := range found {
		one, taken := session.Adopt(kernel, f), false
		if err == nil { // what cannot be told of one cannot be told of the others, and may take its time
			taken, err = s.take(one, hasOutgoing)
		}
		if !taken {
			_ = one.Close() // it was only looked at
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// FindSessions is OpenSessions for who does not have the device open: it is opened where
// it has to be asked.
func FindSessions(ctx context.Context, kernel session.Kernel, path string, duplicator Duplicator) (*Sessions, error) {
	var device *session.Device
	found, err := OpenSessions(kernel, duplicator, func(name string) (_ bool, err error) {
		if device == nil {
			wait, stop := context.WithTimeout(ctx, deviceTimeout)
			defer stop()
			if device, err = session.OpenWait(wait, kernel, path); err != nil {
				return false, err
			}
		}
		return device.HasOutgoing(name)
	})
	if device != nil {
		_ = device.Close() // it was only asked
	}
	return found, err
}

// take tells whether a session is one of those that matter here, and the first
// descriptor of it.
func (s *Sessions) take(one *session.Session, hasOutgoing func(name string) (bool, error)) (taken bool, err error) {
	name, err := one.Name()
	if err != nil {
		return false, nil // none of ours: their names can be had
	}
	if name == kho.IndexSession && s.index == nil {
		s.index = one
		return true, nil
	}
	if !kho.IsServiceSession(name) {
		return false, nil
	}
	out, err := one.Outgoing()
	if errors.Is(err, session.ErrUnchecked) {
		out, err = hasOutgoing(name)
	}
	if err != nil {
		return false, fmt.Errorf("tell whether the session %s came or is to be carried: %w", name, err)
	}
	into := s.incoming
	if out {
		into = s.outgoing
	}
	if into[name] != nil {
		return false, nil
	}
	into[name] = one
	return true, nil
}

// Close closes the sessions, which ends nothing: PID 1 has them.
func (s *Sessions) Close() {
	if s == nil {
		return
	}
	for _, sessions := range []map[string]*session.Session{s.outgoing, s.incoming} {
		for _, one := range sessions {
			_ = one.Close()
		}
	}
	_ = s.index.Close()
}

// Made tells whether an entry of a unit's store is a session that fdbridge has made
// for that unit under that name, by what the kernel calls it; lost says why it will
// not be carried, nil if it will.
func (s *Sessions) Made(unit string, e *units.Entry) (ours bool, lost error) {
	name := kho.ServiceSession(unit, e.Name)
	switch {
	case !e.IsSession(name):
		return false, nil
	case s.outgoing[name] != nil:
		return true, nil
	case s.incoming[name] != nil:
		return true, errCame
	}
	return false, nil
}

// Unclaimed returns what of the services' sessions is in fdbridged's own store and
// will be lost: they came, and their units are not done with them. The error is that
// the index cannot be read.
func (s *Sessions) Unclaimed(own *units.Store) ([]kho.IndexUnit, error) {
	if s.index == nil || own == nil || len(s.incoming) == 0 {
		return nil, nil
	}
	index, err := readIndex(s.index)
	if err != nil {
		return nil, err
	}
	var list []kho.IndexUnit
	for _, service := range index.Services {
		if s.incoming[service.Session] == nil || !has(own, sessionName(service.Session)) {
			continue
		}
		lost := kho.LostEntry{Name: service.Name, Type: sessionType, Reason: errCame.Error()}
		at := slices.IndexFunc(list, func(u kho.IndexUnit) bool { return u.Unit == service.Unit })
		if at < 0 {
			at, list = len(list), append(list, kho.IndexUnit{Unit: service.Unit})
		}
		list[at].Lost = append(list[at].Lost, lost)
	}
	return list, nil
}

// sessionType is the Type of a units.Entry that is a session.
const sessionType = "luo_session"

func has(store *units.Store, name string) bool {
	return slices.ContainsFunc(store.Entries, func(e units.Entry) bool { return e.Name == name })
}

// takeServices takes those of a unit's entries out of its parcel that are sessions
// which fdbridge has made for it. Those that came are lost.
func (p *parcel) takeServices(entries []units.Entry, sessions func() (*Sessions, error)) {
	if !slices.ContainsFunc(entries, func(e units.Entry) bool { return e.Session() }) {
		return
	}
	found, err := sessions()
	var rest []item
	for i := range p.items {
		it := &p.items[i]
		if !entries[i].Session() {
			rest = append(rest, *it)
			continue
		}
		ours, lost := false, err
		if err == nil {
			ours, lost = found.Made(p.unit, &entries[i])
		}
		if lost != nil {
			it.lost = lost
		}
		if ours && lost == nil {
			p.services = append(p.services, kho.NewService(p.unit, it.entry.Name, p.identity))
			continue
		}
		rest = append(rest, *it)
	}
	p.items = rest
}

// services finds the services' sessions that are to be carried, and keeps them open
// for that. lost are those that cannot be.
func (p *Preserver) services(found *stores, done *Preserved) (list []kho.Service, lost []kho.IndexUnit, err error) {
	for _, parcel := range found.parcels {
		list = append(list, parcel.services...)
	}
	found.parcels = slices.DeleteFunc(found.parcels, func(p *parcel) bool { return len(p.items) == 0 })
	if found.own != nil || len(list) > 0 {
		sessions, failed := found.sessions()
		if failed == nil && found.own != nil {
			list, failed = p.openedIn(found, sessions, list)
		}
		if failed == nil {
			lost, failed = sessions.Unclaimed(found.own)
		}
		err = failed
	}
	if err != nil && !p.Partly {
		return nil, nil, fmt.Errorf("%w: not all sessions of services can be found: %w", ErrRequired, err)
	}
	if err != nil {
		p.Log.Err("Sessions of services may be lost: %v", err)
	}
	for _, service := range list {
		sessions, _ := found.sessions() // they are where the list is from
		done.sessions = append(done.sessions, sessions.outgoing[service.Session])
		delete(sessions.outgoing, service.Session)
	}
	return list, lost, nil
}

// openedIn adds what services have opened, by the labels in fdbridged's store.
func (p *Preserver) openedIn(found *stores, sessions *Sessions, list []kho.Service) ([]kho.Service, error) {
	var labels []units.Entry
	for _, e := range found.own.Entries {
		if strings.HasPrefix(e.Name, labelPrefix) {
			labels = append(labels, e)
		}
	}
	d, err := found.duplicator()
	if err != nil {
		return list, err
	}
	files, failed := d.Dup(labels)
	for i, file := range files {
		if file == nil {
			continue
		}
		service, err := kho.ReadService(file.FD)
		failed[i] = errors.Join(err, file.FD.Close())
		if err != nil || !has(found.own, openPrefix+storeHash(service.Session)) {
			continue // a label alone is what a crash has left of an answer that nobody got
		}
		if sessions.outgoing[service.Session] == nil {
			failed[i] = fmt.Errorf("the session %q of %s is not where it was stored", service.Name, service.Unit)
			continue
		}
		if !slices.ContainsFunc(list, func(s kho.Service) bool { return s.Session == service.Session }) {
			list = append(list, *service)
		}
	}
	return list, errors.Join(failed...)
}
