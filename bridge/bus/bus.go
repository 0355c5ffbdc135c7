// SPDX-License-Identifier: Apache-2.0

// Package bus serves fdbridge on the system message bus, as
// org.fdbridge.Bridge1(5) describes it: objects, properties and signals, and who
// may call what.
//
// All that it knows it asks fdbridged for, which starts before there is a bus and
// waits for none. What is decided about fds is decided there; fds do not pass over
// the bus, in neither direction.
package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

const (
	// Name is the name on the bus, and what the names of interfaces and errors
	// begin with.
	Name = "org.fdbridge.Bridge1"
	// Path is that of the manager object, Socket that of the system bus.
	Path   = "/org/fdbridge/Bridge1"
	Socket = "/run/dbus/system_bus_socket"

	managerInterface = Name + ".Manager"
	unitInterface    = Name + ".Unit"
)

const (
	// connectTimeout bounds the time until the bus has given the name.
	connectTimeout = 25 * time.Second
	// maxCalls bounds how many method calls are served at a time; others are
	// refused.
	maxCalls = 64
	// retryPause is how long to wait before fdbridged is asked again that has
	// hung up.
	retryPause = time.Second
	// refreshPause is how long changes are gathered before PID 1 is asked about
	// them: at boot there are as many as there are units.
	refreshPause = 100 * time.Millisecond
)

// Backend is what a Service tells of and acts on. Its errors answer errors.Is for
// wire.ErrRefused when fdbridged has said no, and for ErrNotRunning when there is none.
type Backend interface {
	Units(ctx context.Context) ([]wire.Unit, error)
	Status(ctx context.Context) (wire.Status, error)
	Report(ctx context.Context) (*wire.Report, error)
	Show(ctx context.Context, unit string) (*wire.Shown, error)
	Check(ctx context.Context) (*Verdict, error)
	Drop(ctx context.Context, unit string) error
	// Deliver lets one unit have what is held for another.
	Deliver(ctx context.Context, unit, as string) error
	// Watch calls changed when something may have changed, and first when it
	// begins to watch. It ends when ctx does, or with an error.
	Watch(ctx context.Context, changed func()) error
}

// ErrNotRunning says that there is no fdbridged to ask.
var ErrNotRunning = errors.New("fdbridged is not running")

// Service is the service on the bus.
type Service struct {
	Backend Backend
	// Machine is what is known of the running kernel: it does not change.
	Machine wire.Status

	conn     *dbus.Conn
	polkit   authority
	calls    chan struct{} // as many as there are calls
	checking chan struct{} // one as long as a check is under way
	changed  chan struct{} // there is something to look at
	state    state
}

// Serve connects to the bus at the path socket, takes the name and serves until ctx
// ends, which is no error, or the bus does.
func (s *Service) Serve(ctx context.Context, socket string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s.calls, s.checking = make(chan struct{}, maxCalls), make(chan struct{}, 1)
	s.changed = make(chan struct{}, 1)
	s.state.turn = make(chan struct{}, 1)
	if err := s.connect(ctx, socket); err != nil {
		return fmt.Errorf("connect to the message bus: %w", err)
	}
	defer func() { _ = s.conn.Close() }() // all that matters was answered
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		s.follow(ctx)
	}()
	defer func() { <-followed }()
	defer stop()
	select {
	case <-ctx.Done():
		return nil
	case <-s.conn.Context().Done():
		return errors.New("the message bus has closed the connection")
	}
}

// connect opens a connection that cannot pass fds. What is there before the name is
// taken is no news to anybody.
func (s *Service) connect(ctx context.Context, socket string) error {
	ctx, stop := context.WithTimeout(ctx, connectTimeout)
	defer stop()
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	s.conn, err = dbus.NewConn(raw, dbus.WithHandler(tree{s}))
	if err != nil {
		return errors.Join(err, raw.Close())
	}
	s.polkit = authority{conn: s.conn, asking: make(chan struct{}, maxAsking)}
	if err = s.conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err == nil {
		err = s.conn.Hello()
	}
	if err == nil {
		_, _ = s.refresh(ctx) // why it cannot be is told to those who ask
		err = s.own(ctx)
	}
	if err != nil {
		return errors.Join(err, s.conn.Close())
	}
	return nil
}

func (s *Service) own(ctx context.Context) error {
	var reply dbus.RequestNameReply
	err := s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.RequestName", 0, Name, dbus.NameFlagDoNotQueue).Store(&reply)
	if err == nil && reply != dbus.RequestNameReplyPrimaryOwner {
		err = errors.New("another process has it")
	}
	if err != nil {
		return fmt.Errorf("take the name %s: %w", Name, err)
	}
	return nil
}

// follow signals what changes until ctx ends.
func (s *Service) follow(ctx context.Context) {
	if s.Machine.Kernel.Device {
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			s.watch(ctx)
		}()
		defer func() { <-watched }()
	}
	for {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(refreshPause):
		case <-ctx.Done():
			return
		}
		_, _ = s.refresh(ctx) // State tells it
	}
}

// watch notes that there is something to look at, until ctx ends.
func (s *Service) watch(ctx context.Context) {
	note := func() {
		select {
		case s.changed <- struct{}{}:
		default: // it is to be looked at already
		}
	}
	for ctx.Err() == nil {
		_ = s.Backend.Watch(ctx, note) // State tells why
		note()
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
}
