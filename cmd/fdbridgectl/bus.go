// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// Whoever may not open fdbridged's socket, which is root's, asks for what there is on
// the message bus, where polkit decides: see org.fdbridge.Bridge1(5).
const (
	busName    = "org.fdbridge.Bridge1"
	busPath    = "/org/fdbridge/Bridge1"
	busManager = busName + ".Manager"
	busSocket  = "/run/dbus/system_bus_socket"
	// busTimeout bounds a call, in which a user may have to authenticate.
	busTimeout = 3 * time.Minute
)

// call calls a method of the manager on the message bus, and stores the values of the
// reply.
func (d daemon) call(method string, args []any, reply ...any) error {
	return d.callAt(busPath, busManager+"."+method, args, reply...)
}

// change is call for a method that changes something, for which a user may have to
// authenticate.
func (d daemon) change(method string, args ...any) error {
	stop := d.startAgent()
	defer stop()
	return d.call(method, args)
}

// describe asks an object for what its method Describe tells.
func (d daemon) describe(path dbus.ObjectPath, iface string, into any) error {
	var text string
	if err := d.callAt(path, iface+".Describe", nil, &text); err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// describeUnit is describe for the object of a unit.
func (d daemon) describeUnit(unit string, into any) error {
	var path dbus.ObjectPath
	if err := d.call("GetUnit", []any{unit}, &path); err != nil {
		return err
	}
	return d.describe(path, busName+".Unit", into)
}

// checked is what the bus tells of a check: not the single units.
type checked struct {
	Outcome   check.Outcome   `json:"outcome"`
	CalledOff bool            `json:"called_off"`
	Problems  []check.Problem `json:"problems"`
}

// check has a check made and prints what it finds.
func (d daemon) check(w io.Writer, v *view) (check.Outcome, error) {
	var found checked
	err := d.call("Check", nil, &found.Outcome, &found.CalledOff, &found.Problems)
	if err == nil {
		err = output(w, v.json, found, func() string {
			verdict := "Nothing would be lost."
			if found.Outcome != check.Carried {
				verdict = verdictText(&check.Result{Outcome: found.Outcome, CalledOff: found.CalledOff})
			}
			return verdict + "\n" + v.problemsText(found.Problems)
		})
	}
	return found.Outcome, err
}

// callAt calls a method, named with its interface, of an object.
func (d daemon) callAt(path dbus.ObjectPath, method string, args []any, reply ...any) error {
	ctx, stop := context.WithTimeout(context.Background(), busTimeout)
	defer stop()
	conn, err := dbus.Connect("unix:path="+d.bus, dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("only root may ask fdbridged itself, and the message bus cannot be asked: %w", err)
	}
	defer func() { _ = conn.Close() }() // all has been said
	err = conn.Object(busName, path).CallWithContext(ctx, method, dbus.FlagAllowInteractiveAuthorization, args...).Store(reply...)
	var refused dbus.Error
	if errors.As(err, &refused) {
		return fmt.Errorf("%s: %w", method[strings.LastIndexByte(method, '.')+1:], refused)
	}
	return err
}

// unitsOnBus is units on the message bus.
func (d daemon) unitsOnBus() ([]wire.Unit, error) {
	var found []struct {
		Name, State  string
		Stored, Held uint32
		HeldBytes    uint64
		Lost         uint32
		Path         dbus.ObjectPath
	}
	list := []wire.Unit{}
	err := d.call("ListUnits", nil, &found)
	for _, u := range found {
		state := wire.StateOptedIn // which a unit of another state on the bus is, too
		if u.Held > 0 {
			state = wire.StateHeld
		}
		list = append(list, wire.Unit{
			Unit: u.Name, State: state, Stored: int(u.Stored), Held: int(u.Held), HeldBytes: int64(u.HeldBytes), Lost: int(u.Lost),
		})
	}
	return list, err
}
