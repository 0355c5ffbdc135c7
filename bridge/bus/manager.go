// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// What a Manager's State can be.
const (
	stateUnsupported = "unsupported" // this kernel offers no live update
	stateNotRunning  = "not-running" // fdbridged cannot be asked
	stateUnknown     = "unknown"     // it is not known what the last live update has brought
	stateHolding     = "holding"     // fds wait for units
	stateIdle        = "idle"        // none do
)

func manager() *iface {
	return &iface{
		name: managerInterface,
		methods: []member{
			{name: "ListUnits", out: []arg{{"a(ssuutuo)", "units"}}, do: (*Service).listUnits},
			{name: "GetUnit", in: []arg{{"s", "name"}}, out: []arg{{"o", "unit"}}, do: (*Service).getUnit},
			{name: "Describe", out: []arg{{"s", "json"}}, do: (*Service).describe},
			{
				name: "Check", do: (*Service).check,
				out: []arg{{"s", "outcome"}, {"b", "called_off"}, {"a(ssassss)", "problems"}},
			},
			{name: "Drop", in: []arg{{"s", "name"}}, do: (*Service).drop},
			{name: "Deliver", in: []arg{{"s", "name"}, {"s", "as"}}, do: (*Service).deliver},
		},
		properties: []member{
			{name: "Version", sig: "s", changes: "const", value: func(v *view) any { return v.machine.Version }},
			{name: "State", sig: "s", changes: "true", value: func(v *view) any { return v.state() }},
			{name: "KernelSupported", sig: "b", changes: "const", value: func(v *view) any { return v.machine.Kernel.Device }},
			{name: "LiveUpdateNumber", sig: "t", changes: "const", value: func(v *view) any { return v.number() }},
			{name: "PreviousKernel", sig: "s", changes: "const", value: func(v *view) any { return valid(v.machine.Kernel.Previous) }},
			{name: "Held", sig: "u", changes: "true", value: func(v *view) any { return uint32(v.status.Held) }},
		},
	}
}

func (v *view) state() string {
	switch {
	case !v.machine.Kernel.Device:
		return stateUnsupported
	case v.err != nil:
		return stateNotRunning
	case v.status.Unknown != "":
		return stateUnknown
	case v.status.Held+v.status.Sessions > 0:
		return stateHolding
	}
	return stateIdle
}

// number is the greatest one where it is not known, as systemd has it.
func (v *view) number() uint64 {
	if n := v.machine.Kernel.LiveUpdateNumber; n != nil {
		return *n
	}
	return math.MaxUint64
}

// listed is a unit in the reply of ListUnits.
type listed struct {
	Name, State  string
	Stored, Held uint32
	HeldBytes    uint64
	Lost         uint32
	Path         dbus.ObjectPath
}

func (s *Service) listUnits(ctx context.Context, _ *call) ([]any, *dbus.Error) {
	found, err := s.refresh(ctx)
	if err != nil {
		return nil, failed(err)
	}
	list := []listed{}
	for _, name := range slices.Sorted(maps.Keys(found.units)) {
		u := found.units[name]
		list = append(list, listed{
			valid(u.Unit), unitState(&u), uint32(u.Stored), uint32(u.Held), uint64(u.HeldBytes), uint32(u.Lost), unitPath(name),
		})
	}
	return []any{list}, nil
}

func (s *Service) getUnit(ctx context.Context, c *call) ([]any, *dbus.Error) {
	u, wrong := s.named(ctx, c.text(0))
	if wrong != nil {
		return nil, wrong
	}
	return []any{unitPath(u.Unit)}, nil
}

// describe tells what fdbridgectl status tells.
func (s *Service) describe(ctx context.Context, _ *call) ([]any, *dbus.Error) {
	return described(s.Backend.Report(ctx))
}

// serviceName refuses what is no name of a service that could run.
func serviceName(name string) *dbus.Error {
	if !unitfile.ValidName(name) || unitfile.IsTemplate(name) {
		return fault(errInvalidArgs, fmt.Sprintf("%q is not the name of a service", name))
	}
	return nil
}

// named returns the unit of that name, which must have opted in or have something
// held for it.
func (s *Service) named(ctx context.Context, name string) (*wire.Unit, *dbus.Error) {
	if wrong := serviceName(name); wrong != nil {
		return nil, wrong
	}
	found, err := s.refresh(ctx)
	if err != nil {
		return nil, failed(err)
	}
	u, ok := found.units[name]
	if !ok {
		return nil, fault(errNoSuchUnit, name+" has not opted in, and nothing is held for it")
	}
	return &u, nil
}

// Verdict is what a check has found; its members are those of fdbridgectl check --json.
type Verdict struct {
	Outcome   string    `json:"outcome"`
	CalledOff bool      `json:"called_off"`
	Problems  []Problem `json:"problems"`
}

// Problem is one of a Verdict.
type Problem struct {
	Outcome string   `json:"outcome"`
	Unit    string   `json:"unit"`
	FDs     []string `json:"fds"`
	Type    string   `json:"type"`
	Message string   `json:"message"`
	Remedy  string   `json:"remedy"`
}

// check lets one check at a time run: each takes PID 1, and reads all stores.
func (s *Service) check(ctx context.Context, _ *call) ([]any, *dbus.Error) {
	select {
	case s.checking <- struct{}{}:
		defer func() { <-s.checking }()
	default:
		return nil, fault(errChecking, "another check is under way")
	}
	found, err := s.Backend.Check(ctx)
	if err != nil {
		return nil, failed(err)
	}
	problems := []Problem{}
	for _, p := range found.Problems {
		fds := []string{}
		for _, name := range p.FDs {
			fds = append(fds, valid(name))
		}
		problems = append(problems, Problem{valid(p.Outcome), valid(p.Unit), fds, valid(p.Type), valid(p.Message), valid(p.Remedy)})
	}
	return []any{valid(found.Outcome), found.CalledOff, problems}, nil
}

func (s *Service) drop(ctx context.Context, c *call) ([]any, *dbus.Error) {
	name := c.text(0)
	wrong := s.mayChange(ctx, c, action{"drop", name, "", "Authentication is required to let go of the file descriptors that are held for '$(unit)'."})
	if wrong != nil {
		return nil, wrong
	}
	if err := s.Backend.Drop(ctx, name); err != nil {
		return nil, failed(err)
	}
	return nil, nil
}

func (s *Service) deliver(ctx context.Context, c *call) ([]any, *dbus.Error) {
	name, as := c.text(0), c.text(1)
	if wrong := serviceName(as); wrong != nil {
		return nil, wrong
	}
	wrong := s.mayChange(ctx, c, action{"deliver", name, as, "Authentication is required to give '$(as)' the file descriptors that are held for '$(unit)'."})
	if wrong != nil {
		return nil, wrong
	}
	if err := s.Backend.Deliver(ctx, name, as); err != nil {
		return nil, failed(err)
	}
	return nil, nil
}

// mayChange refuses what cannot be done, and then whom it is not allowed to.
func (s *Service) mayChange(ctx context.Context, c *call, a action) *dbus.Error {
	u, wrong := s.named(ctx, a.unit)
	if wrong == nil && u.Held == 0 && (u.Sessions == 0 || a.as != "") { // a unit's own sessions are no other's
		wrong = fault(errNothingHeld, "nothing is held for "+a.unit)
	}
	if wrong != nil {
		return wrong
	}
	return s.polkit.allow(c, a)
}
