// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/units/bulk"
)

// Identity says who a unit is, as PID 1 has it loaded, and whether it can be
// given fds.
type Identity struct {
	Unit string // its real name, when it was asked for by an alias
	Load string // "loaded", "not-found", "masked" and others
	// FragmentPath, User and Group are as in a Store.
	FragmentPath, User, Group string
	// Max and Preserve are FileDescriptorStoreMax= and
	// FileDescriptorStorePreserve=, DropIns the paths of its drop-ins.
	Max      uint32
	Preserve string
	DropIns  []string
}

// Missing tells whether there is no such unit that could be started: it has no
// file, or is masked.
func (i *Identity) Missing() bool { return i.Load == "not-found" || i.Load == "masked" }

// OptedIn tells whether the unit's store is to survive, as a Store's method.
func (i *Identity) OptedIn() bool {
	s := Store{Preserve: i.Preserve, Max: i.Max}
	return s.OptedIn()
}

// HasDropIn tells whether a drop-in is loaded whose file name begins so.
func (i *Identity) HasDropIn(prefix string) bool {
	return slices.ContainsFunc(i.DropIns, func(name string) bool { return strings.HasPrefix(path.Base(name), prefix) })
}

// Identity returns who a service is. PID 1 loads it for that when it is not.
func (r *Reader) Identity(ctx context.Context, unit string) (Identity, error) {
	var id Identity
	var calls []bulk.Call
	ask := func(iface, name string, dest any) {
		calls = append(calls, getProperty(unitPath(unit), iface, name, func(b *bulk.Reader) { readValue(b, dest) }))
	}
	ask(unitInterface, "Id", &id.Unit)
	ask(unitInterface, "LoadState", &id.Load)
	ask(unitInterface, "FragmentPath", &id.FragmentPath)
	ask(unitInterface, "DropInPaths", &id.DropIns)
	ask(serviceInterface, "User", &id.User)
	ask(serviceInterface, "Group", &id.Group)
	ask(serviceInterface, "FileDescriptorStoreMax", &id.Max)
	ask(serviceInterface, "FileDescriptorStorePreserve", &id.Preserve)
	err := r.connected(ctx, func(ctx context.Context, a asker) error { return a.calls(ctx, calls, nil) })
	for i := range calls {
		if calls[i].Err != nil {
			err = errors.Join(err, fmt.Errorf("read who %s is: %w: %w", unit, ErrManager, calls[i].Err))
		}
	}
	if err != nil {
		return Identity{}, err
	}
	return id, nil
}
