// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// PrivateSocket is where PID 1 serves D-Bus without a bus daemon, to root
// only (src/core/dbus.c, bus_init_private).
const PrivateSocket = "/run/systemd/private"

const (
	// connectTimeout bounds the time until PID 1 has accepted and
	// authenticated a connection.
	connectTimeout = 10 * time.Second
	// CallTimeout bounds each question to PID 1, a batch counting as one. PID 1
	// has no priority over the processes it starts, and has been seen to take
	// more than 20 s when it starts 100 services on two slow processors.
	CallTimeout = 45 * time.Second
)

const (
	busName          = "org.freedesktop.systemd1"
	managerPath      = "/org/freedesktop/systemd1"
	managerInterface = busName + ".Manager"
	serviceInterface = busName + ".Service"
	unitInterface    = busName + ".Unit"
)

// ErrManager is what every error of a Manager answers errors.Is for.
var ErrManager = errors.New("the service manager (PID 1) did not answer as expected")

// Manager is a connection to PID 1 on which it is told what to do. PID 1 sends
// every signal to every private connection, and spends more time on that than
// on what it signals: nobody keeps one open for longer than it is needed.
type Manager struct {
	sd     *systemd.Conn
	conn   *dbus.Conn
	cancel context.CancelFunc
}

// Connect opens a connection to PID 1 on the given socket, usually
// PrivateSocket. It takes at most ten seconds. The caller closes it.
func Connect(ctx context.Context, socket string) (*Manager, error) {
	life, cancel := context.WithCancel(context.Background())
	m := &Manager{cancel: cancel}
	setup, stop := context.WithTimeout(ctx, connectTimeout)
	defer stop()
	release := context.AfterFunc(setup, cancel)
	err := m.dial(life, socket)
	if !release() && err == nil {
		err = context.Cause(setup)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect to %s: %w: %w", socket, ErrManager, err)
	}
	return m, nil
}

// dial sets up one connection for the two that go-systemd asks for, the second
// of which is for signals of jobs: nothing here waits for a job.
func (m *Manager) dial(life context.Context, socket string) (err error) {
	m.conn, err = dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(socket), dbus.WithContext(life))
	if err != nil {
		return err
	}
	if err = m.conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err == nil {
		m.sd, err = systemd.NewConnection(func() (*dbus.Conn, error) { return m.conn, nil })
	}
	if err != nil {
		_ = m.conn.Close()
	}
	return err
}

// Close closes the connection; calls under way end with an error.
func (m *Manager) Close() error {
	err := m.conn.Close()
	m.cancel()
	return err
}

// Stop stops a unit, and does not wait until it has.
func (m *Manager) Stop(ctx context.Context, unit string) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	if _, err := m.sd.StopUnitContext(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("stop %s: %w: %w", unit, ErrManager, err)
	}
	return nil
}

// Start starts a unit, and does not wait until it has.
func (m *Manager) Start(ctx context.Context, unit string) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	if _, err := m.sd.StartUnitContext(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("start %s: %w: %w", unit, ErrManager, err)
	}
	return nil
}
