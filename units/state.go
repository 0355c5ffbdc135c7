// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"

	"github.com/fdbridge/fdbridge/units/bulk"
)

// State is what PID 1 says of a unit, whatever its type.
type State struct {
	Load     string   // "loaded", "not-found", "masked" and others
	Active   string   // "active", "inactive", "failed" and others
	Requires []string // the units that it requires
}

// Service is what PID 1 says of a service that has a status.
type Service struct {
	Active string // as in State
	// Left is when it was inactive last, by CLOCK_MONOTONIC in microseconds; 0 if it
	// always was.
	Left   uint64
	Status string // what it says itself, empty unless it has since it was started
}

// Service returns what PID 1 says of a service.
func (r *Reader) Service(ctx context.Context, unit string) (Service, error) {
	var s Service
	path := unitPath(unit)
	err := r.properties(ctx, unit, []property{
		{path, unitInterface, "ActiveState", "s", func(b *bulk.Reader) { s.Active = b.Text() }},
		{path, unitInterface, "InactiveExitTimestampMonotonic", "t", func(b *bulk.Reader) { s.Left = b.Uint64() }},
		{path, serviceInterface, "StatusText", "s", func(b *bulk.Reader) { s.Status = b.Text() }},
	})
	return s, err
}

// State returns the state of a unit. PID 1 loads it for that when it is not.
func (r *Reader) State(ctx context.Context, unit string) (State, error) {
	var s State
	path := unitPath(unit)
	err := r.properties(ctx, unit, []property{
		{path, unitInterface, "LoadState", "s", func(b *bulk.Reader) { s.Load = b.Text() }},
		{path, unitInterface, "ActiveState", "s", func(b *bulk.Reader) { s.Active = b.Text() }},
		{path, unitInterface, "Requires", "as", func(b *bulk.Reader) { s.Requires = b.Texts() }},
	})
	if err != nil {
		return State{}, err
	}
	return s, nil
}

// property is one of an object's to be read, of a type.
type property struct {
	path, iface, name, signature string
	read                         func(b *bulk.Reader)
}

// properties reads properties, which are the state of something.
func (r *Reader) properties(ctx context.Context, of string, list []property) error {
	var calls []bulk.Call
	for _, p := range list {
		calls = append(calls, getProperty(p.path, p.iface, p.name, func(b *bulk.Reader) { b.Variant(p.signature); p.read(b) }))
	}
	err := r.connected(ctx, func(ctx context.Context, a asker) error { return a.calls(ctx, calls, nil) })
	for i := range calls {
		if calls[i].Err != nil {
			err = errors.Join(err, fmt.Errorf("read the state of %s: %w: %w", of, ErrManager, calls[i].Err))
		}
	}
	return err
}
