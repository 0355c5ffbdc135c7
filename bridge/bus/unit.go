// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"math"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// What a Unit's State can be. That its fds are preserved for the next kernel cannot
// be seen here: there is no message bus any more then.
const (
	unitOptedIn   = "opted-in"  // its store will be carried
	unitHeld      = "held"      // fds wait for it to be started
	unitDelivered = "delivered" // it has got what the last live update brought
	unitLost      = "lost"      // nothing came, or what came was let go of
)

func unit() *iface {
	methods := []member{{name: "Describe", out: []arg{{"s", "json"}}, do: (*Service).describeUnit}}
	return &iface{name: unitInterface, methods: methods, properties: []member{
		{name: "Name", sig: "s", changes: "const", value: func(v *view) any { return valid(v.unit.Unit) }},
		{name: "State", sig: "s", changes: "true", value: func(v *view) any { return unitState(&v.unit) }},
		{name: "Stored", sig: "u", changes: "false", value: func(v *view) any { return uint32(v.unit.Stored) }},
		{name: "Held", sig: "u", changes: "true", value: func(v *view) any { return uint32(v.unit.Held) }},
		{name: "HeldBytes", sig: "t", changes: "true", value: func(v *view) any { return uint64(v.unit.HeldBytes) }},
		{name: "Lost", sig: "u", changes: "true", value: func(v *view) any { return uint32(v.unit.Lost) }},
		{name: "Session", sig: "s", changes: "true", value: func(v *view) any { return valid(v.unit.Session) }},
		{name: "Entries", sig: "a(ssst)", changes: "invalidates", explicit: true},
	}}
}

func unitState(u *wire.Unit) string {
	switch {
	case u.State == wire.StateHeld:
		return unitHeld
	case u.Outcome == wire.ChangeDelivered:
		return unitDelivered
	case u.Outcome == wire.ChangeDropped, u.Outcome == wire.OutcomeLost:
		return unitLost
	}
	return unitOptedIn
}

// known returns the unit whose object is at a path, nil for the manager's, or that
// there is no such object.
func (s *Service) known(ctx context.Context, path dbus.ObjectPath) (*view, *dbus.Error) {
	found, err := s.refresh(ctx)
	if path == Path { // what it has to tell does not depend on fdbridged
		return &view{&s.Machine, found, wire.Unit{}}, nil
	}
	name, ok := unitAt(path)
	if ok && err != nil {
		return nil, failed(err)
	}
	u, ok := found.units[name]
	if !ok {
		return nil, fault(errNoObject, fmt.Sprintf("there is no object %s", path))
	}
	return &view{&s.Machine, found, u}, nil
}

// describeUnit tells what fdbridgectl show tells of a unit.
func (s *Service) describeUnit(ctx context.Context, c *call) ([]any, *dbus.Error) {
	v, wrong := s.known(ctx, c.path)
	if wrong != nil {
		return nil, wrong
	}
	return described(s.Backend.Show(ctx, v.unit.Unit))
}

// described is the reply of a method named Describe: JSON in a string, as systemd's
// services have it.
func described[T any](found *T, err error) ([]any, *dbus.Error) {
	if err != nil {
		return nil, failed(err)
	}
	text, err := json.Marshal(found) // of any bytes it makes valid UTF-8
	if err != nil {
		return nil, failed(err)
	}
	return []any{string(text)}, nil
}

// entry is one of a Unit's Entries.
type entry struct {
	Place, Name, Type string
	Size              uint64
}

// entries returns the value of Entries.
func (s *Service) entries(ctx context.Context, unit string) (any, *dbus.Error) {
	found, err := s.Backend.Show(ctx, unit)
	if err != nil {
		return nil, failed(err)
	}
	list := []entry{}
	for _, e := range found.Entries {
		size := uint64(math.MaxUint64)
		if e.Size != nil {
			size = uint64(*e.Size)
		}
		list = append(list, entry{valid(e.Place), valid(e.Name), valid(e.Type), size})
	}
	return list, nil
}
