// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// The errors of fdbridge's own.
const (
	errNoSuchUnit  = Name + ".NoSuchUnit"
	errNothingHeld = Name + ".NothingHeld"
	errNotRunning  = Name + ".NotRunning"
	errRefused     = Name + ".Refused"
	errChecking    = Name + ".CheckInProgress"
)

// The errors that the message bus knows.
const (
	errFailed       = "org.freedesktop.DBus.Error.Failed"
	errInvalidArgs  = "org.freedesktop.DBus.Error.InvalidArgs"
	errAccessDenied = "org.freedesktop.DBus.Error.AccessDenied"
	errInteractive  = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	errLimits       = "org.freedesktop.DBus.Error.LimitsExceeded"
	errTimeout      = "org.freedesktop.DBus.Error.Timeout"
	errReadOnly     = "org.freedesktop.DBus.Error.PropertyReadOnly"
	errNoObject     = "org.freedesktop.DBus.Error.UnknownObject"
	errNoInterface  = "org.freedesktop.DBus.Error.UnknownInterface"
	errNoMethod     = "org.freedesktop.DBus.Error.UnknownMethod"
	errNoProperty   = "org.freedesktop.DBus.Error.UnknownProperty"
)

// fault makes an error for a caller, which the bus requires to be valid UTF-8.
func fault(name, message string) *dbus.Error {
	return dbus.NewError(name, []any{valid(message)})
}

// valid returns what can be sent as a string: the bus hangs up on who sends
// another.
func valid(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// failed makes an error for a caller of one of the Backend's.
func failed(err error) *dbus.Error {
	name := errFailed
	switch {
	case errors.Is(err, ErrNotRunning):
		name = errNotRunning
	case errors.Is(err, wire.ErrRefused):
		name = errRefused
	case errors.Is(err, context.DeadlineExceeded):
		name = errTimeout
	}
	return fault(name, strings.ReplaceAll(err.Error(), "\n", "; "))
}
