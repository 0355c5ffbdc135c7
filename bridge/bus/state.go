// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// snapshot is what fdbridged has said. It does not change.
type snapshot struct {
	asked  time.Time // when, before it was asked
	err    error     // ErrNotRunning: the rest is what was known before
	status wire.Status
	units  map[string]wire.Unit
}

// state is the last snapshot, which is what the signals are about.
type state struct {
	turn chan struct{} // holds a value while somebody uses the rest
	last *snapshot     // nil at first
}

// refresh asks fdbridged, signals what has changed and returns it; with an error,
// what was known before. Those who come while it asks for somebody else share the
// next answer: PID 1 has work with each.
func (s *Service) refresh(ctx context.Context) (*snapshot, error) {
	arrived := time.Now()
	select {
	case s.state.turn <- struct{}{}:
	case <-ctx.Done():
		return &snapshot{}, context.Cause(ctx)
	}
	defer func() { <-s.state.turn }()
	last := s.state.last
	if last != nil && last.asked.After(arrived) {
		return last, last.err
	}
	next, err := s.ask(ctx)
	switch {
	case err == nil:
	case last == nil:
		next = &snapshot{err: err}
	case errors.Is(err, ErrNotRunning):
		next = &snapshot{err: err, status: last.status, units: last.units}
	default:
		return last, err
	}
	if s.state.last = next; last != nil {
		s.signal(last, next)
	}
	return next, err
}

func (s *Service) ask(ctx context.Context) (*snapshot, error) {
	next := &snapshot{asked: time.Now(), units: map[string]wire.Unit{}}
	list, err := s.Backend.Units(ctx)
	if err == nil {
		next.status, err = s.Backend.Status(ctx)
	}
	for _, u := range list {
		next.units[u.Unit] = u
	}
	return next, err
}

// view is what the value of a property is taken from.
type view struct {
	machine *wire.Status
	*snapshot
	unit wire.Unit // of a unit's object
}

// values returns all properties of an interface but the explicit ones.
func (v *view) values(i *iface) map[string]dbus.Variant {
	all := map[string]dbus.Variant{}
	for _, p := range i.properties {
		if !p.explicit {
			all[p.name] = dbus.MakeVariant(p.value(v))
		}
	}
	return all
}

// signal emits what has changed. It does so in the caller's turn, so that signals
// come in the order of what they tell. One that cannot be sent has nobody to go to:
// the connection is gone.
func (s *Service) signal(last, next *snapshot) {
	const interfaces = "org.freedesktop.DBus.ObjectManager.Interfaces"
	s.signalChanges(Path, manager(), &view{&s.Machine, last, wire.Unit{}}, &view{&s.Machine, next, wire.Unit{}})
	for _, name := range slices.Sorted(maps.Keys(last.units)) {
		if _, still := next.units[name]; !still {
			_ = s.conn.Emit(Path, interfaces+"Removed", unitPath(name), []string{unitInterface})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next.units)) {
		is, was := &view{&s.Machine, next, next.units[name]}, &view{&s.Machine, last, last.units[name]}
		switch _, before := last.units[name]; {
		case !before:
			added := map[string]map[string]dbus.Variant{unitInterface: is.values(unit())}
			_ = s.conn.Emit(Path, interfaces+"Added", unitPath(name), added)
		case is.unit != was.unit:
			s.signalChanges(unitPath(name), unit(), was, is)
		}
	}
}

// signalChanges emits PropertiesChanged if there is something to tell.
func (s *Service) signalChanges(path dbus.ObjectPath, i *iface, was, is *view) {
	changed, invalidated := map[string]dbus.Variant{}, []string{}
	for _, p := range i.properties {
		if p.changes != "true" {
			continue
		}
		if value := p.value(is); value != p.value(was) {
			changed[p.name] = dbus.MakeVariant(value)
		}
	}
	if len(changed) == 0 {
		return
	}
	for _, p := range i.properties {
		if p.changes == "invalidates" {
			invalidated = append(invalidated, p.name)
		}
	}
	_ = s.conn.Emit(path, "org.freedesktop.DBus.Properties.PropertiesChanged", i.name, changed, invalidated)
}
