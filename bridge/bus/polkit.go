// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	polkitName = "org.freedesktop.PolicyKit1"
	polkitPath = "/org/freedesktop/PolicyKit1/Authority"
	// authTimeout bounds how long a user may take to authenticate.
	authTimeout = 2 * time.Minute
	// maxAsking bounds how many questions polkit is asked at a time: most of
	// maxCalls stay for those who only read.
	maxAsking = 16
)

// authority decides who may do what, as systemd's services do (src/shared/bus-polkit.c,
// systemd 257): root and the service's own user may do all, and need no polkit to be
// there; others are asked about.
type authority struct {
	conn   *dbus.Conn
	asking chan struct{} // as many as there are questions
}

// action is what somebody wants to do.
type action struct {
	name    string // that of polkit's is Name + "." + name
	unit    string
	as      string // the unit that is to have what is that one's; empty where there is none
	message string // for the user, in which polkit puts the units for $(unit) and $(as)
}

// allow returns nil if the caller may do it.
func (a *authority) allow(c *call, what action) *dbus.Error {
	ctx, stop := context.WithTimeout(a.conn.Context(), authTimeout)
	defer stop()
	var uid uint32
	err := a.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixUser", 0, c.sender).Store(&uid)
	if err != nil {
		return fault(errAccessDenied, fmt.Sprintf("it cannot be told who calls: %v", err))
	}
	if uid == 0 || int(uid) == os.Geteuid() {
		return nil
	}
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	default:
		return fault(errLimits, fmt.Sprintf("%d users are being asked to authenticate already", maxAsking))
	}
	return a.check(ctx, c, what)
}

// subject and details are as org.freedesktop.PolicyKit1.Authority has them.
type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type result struct {
	Authorized, Challenge bool
	Details               map[string]string
}

// check asks polkit.
func (a *authority) check(ctx context.Context, c *call, what action) *dbus.Error {
	const interaction = 1 // AllowUserInteraction
	flags := uint32(0)
	if c.interactive {
		flags = interaction
	}
	who := subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(c.sender)}}
	details := map[string]string{"unit": what.unit, "polkit.message": what.message}
	if what.as != "" {
		details["as"] = what.as
	}
	name := Name + "." + what.name
	var r result
	err := a.conn.Object(polkitName, polkitPath).CallWithContext(ctx, polkitName+".Authority.CheckAuthorization", 0,
		who, name, details, flags, "").Store(&r)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fault(errAccessDenied, fmt.Sprintf("nobody has authenticated within %v for %s", authTimeout, name))
	case err != nil:
		return fault(errAccessDenied, fmt.Sprintf("polkit cannot be asked about %s: %v", name, err))
	case r.Authorized:
		return nil
	case r.Challenge:
		return fault(errInteractive, "interactive authentication is required for "+name)
	}
	return fault(errAccessDenied, "polkit does not allow "+name)
}
