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

// State returns the state of a unit. PID 1 loads it for that when it is not.
func (r *Reader) State(ctx context.Context, unit string) (State, error) {
	var s State
	property := func(name, signature string, read func(b *bulk.Reader)) bulk.Call {
		return getProperty(unitPath(unit), unitInterface, name, func(b *bulk.Reader) { b.Variant(signature); read(b) })
	}
	calls := []bulk.Call{
		property("LoadState", "s", func(b *bulk.Reader) { s.Load = b.Text() }),
		property("ActiveState", "s", func(b *bulk.Reader) { s.Active = b.Text() }),
		property("Requires", "as", func(b *bulk.Reader) { s.Requires = b.Texts() }),
	}
	err := r.connected(ctx, func(ctx context.Context, a asker) error { return a.calls(ctx, calls, nil) })
	for i := range calls {
		if calls[i].Err != nil {
			err = errors.Join(err, fmt.Errorf("read the state of %s: %w: %w", unit, ErrManager, calls[i].Err))
		}
	}
	if err != nil {
		return State{}, err
	}
	return s, nil
}
