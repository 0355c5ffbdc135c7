// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
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
	busUnit    = busName + ".Unit"
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
	return d.describe(path, busUnit, into)
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
	call := <-conn.SendWithContext(ctx, interactive(path, method, args), make(chan *dbus.Call, 1)).Done
	err = call.Store(reply...)
	var refused dbus.Error
	if errors.As(err, &refused) {
		return fmt.Errorf("%s: %w", method[strings.LastIndexByte(method, '.')+1:], refused)
	}
	return err
}

// interactive makes the message of a call for which the user may be asked to
// authenticate. Object.Call of package dbus takes that flag and does not send it
// (object.go in version 5.2.4).
func interactive(path dbus.ObjectPath, method string, args []any) *dbus.Message {
	dot := strings.LastIndexByte(method, '.')
	m := &dbus.Message{
		Type:  dbus.TypeMethodCall,
		Flags: dbus.FlagAllowInteractiveAuthorization,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(busName),
			dbus.FieldPath:        dbus.MakeVariant(path),
			dbus.FieldInterface:   dbus.MakeVariant(method[:dot]),
			dbus.FieldMember:      dbus.MakeVariant(method[dot+1:]),
		},
		Body: args,
	}
	if len(args) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	return m
}

// unitsOnBus is units on the message bus.
func (d daemon) unitsOnBus() ([]wire.Unit, error) {
	var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	if err := d.callAt(busPath, "org.freedesktop.DBus.ObjectManager.GetManagedObjects", nil, &objects); err != nil {
		return nil, err
	}
	list := []wire.Unit{}
	for _, object := range objects {
		u, err := unitOnBus(object[busUnit])
		if err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b wire.Unit) int { return strings.Compare(a.Unit, b.Unit) })
	return list, nil
}

// unitOnBus makes a unit of the properties of its object.
func unitOnBus(properties map[string]dbus.Variant) (u wire.Unit, err error) {
	var stored, held, lost uint32
	var state string
	var bytes uint64
	for name, into := range map[string]any{
		"Name": &u.Unit, "Session": &u.Session, "Stored": &stored, "Held": &held, "Lost": &lost, "State": &state, "HeldBytes": &bytes,
	} {
		err = errors.Join(err, dbus.Store([]any{properties[name].Value()}, into))
	}
	u.State, u.Stored, u.Held, u.HeldBytes, u.Lost = wire.StateOptedIn, int(stored), int(held), int64(bytes), int(lost)
	if state == wire.StateHeld { // units of other states on the bus have opted in, too
		u.State = wire.StateHeld
	}
	return u, err
}
