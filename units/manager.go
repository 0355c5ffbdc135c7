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
	// window is how many calls of a batch are on their way at a time. sd-bus
	// queues at most 4096 replies per connection before it drops it
	// (BUS_WQUEUE_MAX in src/libsystemd/sd-bus/bus-internal.h).
	window = 512
)

const (
	busName          = "org.freedesktop.systemd1"
	managerPath      = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerInterface = busName + ".Manager"
	serviceInterface = busName + ".Service"
	unitInterface    = busName + ".Unit"
	getProperty      = "org.freedesktop.DBus.Properties.Get"
)

// ErrManager is what every error of a Manager answers errors.Is for.
var ErrManager = errors.New("the service manager (PID 1) did not answer as expected")

// Manager is a connection to PID 1. Its methods may be called from several
// goroutines; each is bounded by CallTimeout besides its context.
type Manager struct {
	conn   *dbus.Conn
	sd     *systemd.Conn
	events *events
	cancel context.CancelFunc
}

// Connect opens a connection to PID 1 on the given socket, usually
// PrivateSocket. It takes at most ten seconds.
func Connect(ctx context.Context, socket string) (*Manager, error) {
	life, cancel := context.WithCancel(context.Background())
	m := &Manager{cancel: cancel, events: newEvents()}
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

// dial sets up the one connection. go-systemd asks for two, one of them for
// signals; PID 1 sends signals to every private connection unasked, so the
// same serves as both.
func (m *Manager) dial(life context.Context, socket string) (err error) {
	m.conn, err = dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(socket),
		dbus.WithContext(life), dbus.WithSignalHandler(m.events))
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

// Done is closed when the connection has ended, as it does when PID 1
// re-executes itself.
func (m *Manager) Done() <-chan struct{} { return m.conn.Context().Done() }

// call is one method call of a batch and what becomes of it.
type call struct {
	path   dbus.ObjectPath
	method string
	args   []any
	reply  []any // pointers that the reply's values are stored through
	err    error // the error of this call alone
}

// batch makes all calls, without waiting for one reply before the next call,
// and stores replies and errors in them. The error returned is of the
// connection: the batch as a whole failed or took too long.
func (m *Manager) batch(ctx context.Context, calls []call) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	for len(calls) > 0 {
		n := min(len(calls), window)
		pending := make([]*dbus.Call, n)
		done := make(chan *dbus.Call, n)
		for i := range calls[:n] {
			c := &calls[i]
			pending[i] = m.conn.Object(busName, c.path).GoWithContext(ctx, c.method, 0, done, c.args...)
		}
		for range n {
			select {
			case <-done:
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", ErrManager, context.Cause(ctx))
			}
		}
		for i := range calls[:n] {
			calls[i].err = pending[i].Store(calls[i].reply...)
			var answer dbus.Error
			if err := calls[i].err; err != nil && !errors.As(err, &answer) {
				return fmt.Errorf("%w: %w", ErrManager, err)
			}
		}
		calls = calls[n:]
	}
	return nil
}
