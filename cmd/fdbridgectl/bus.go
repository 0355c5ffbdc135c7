// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"

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
	ctx, stop := context.WithTimeout(context.Background(), busTimeout)
	defer stop()
	conn, err := dbus.Connect("unix:path="+d.bus, dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("only root may ask fdbridged itself, and the message bus cannot be asked: %w", err)
	}
	defer func() { _ = conn.Close() }() // all has been said
	err = conn.Object(busName, busPath).CallWithContext(ctx, busManager+"."+method, dbus.FlagAllowInteractiveAuthorization, args...).Store(reply...)
	var refused dbus.Error
	if errors.As(err, &refused) {
		return fmt.Errorf("%s: %w", method, refused)
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
