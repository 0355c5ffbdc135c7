// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/units"
)

const (
	// requestTimeout bounds how long a client may take to say what it wants.
	requestTimeout = 30 * time.Second
	// deliveryTimeout bounds a delivery, in which the client takes the files
	// out of the session; the unit's own start timeout usually comes first.
	deliveryTimeout = 5 * time.Minute
	// slotTimeout is how long a delivery waits for others to end at most.
	slotTimeout = 60 * time.Second
	// maxConns bounds how many clients are served at a time; others wait.
	maxConns = 256
)

// PID1 is what a Server asks the service manager; units.Reader does it.
type PID1 interface {
	Stores(ctx context.Context) ([]units.Store, error)
	Stored(ctx context.Context, units []string) (map[string]int, error)
	OptedIn(ctx context.Context, units []string) ([]units.Store, error)
}

// Server serves fdbridge's local socket.
type Server struct {
	Holder *Holder
	PID1   PID1
	// UnitOf returns the unit of a process: units.UnitOf but in tests.
	UnitOf   func(pidfd *fd.FD) (string, error)
	Excluded func(unit string) bool
	// Started is told of each unit that asks for its fds.
	Started func(unit string)
	// Machine is what is known of the machine; the Server adds what it holds.
	Machine wire.Status
	Log     *journal.Log

	mu         sync.Mutex
	deliveries map[string]*delivery
	slots      chan struct{} // as many as there may be deliveries at a time
}

// NewServer returns a Server whose fields are to be set.
//
// Deliveries take turns: PID 1 takes one fd after the other, whoever sends it,
// and when all units of a boot send theirs at a time, none can start before
// nearly all are served.
func NewServer() *Server { return &Server{slots: make(chan struct{}, 2*runtime.GOMAXPROCS(0))} }

// Begin looks at the stores of the units that sessions are held for, before
// they can start: those that are empty need not be looked at when their unit
// wants its fds, at a time when PID 1 has much to do.
func (s *Server) Begin(ctx context.Context) error {
	held := s.Holder.Units()
	if len(held) == 0 {
		return nil
	}
	stored, err := s.PID1.Stored(ctx, held)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliveries = map[string]*delivery{}
	for _, unit := range held {
		s.deliveries[unit] = newDelivery()
		s.deliveries[unit].empty = stored[unit] == 0
	}
	return nil
}

// Serve serves listener until it is closed, and waits for the connections that
// are open then, whose clients get the time that is left to them.
func (s *Server) Serve(ctx context.Context, listener *wire.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	room := make(chan struct{}, maxConns)
	for {
		conn, err := listener.Accept()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		room <- struct{}{}
		conns.Go(func() {
			defer func() { <-room }()
			stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
			defer stop()
			if err := s.serve(ctx, conn); err != nil {
				s.Log.Warning("A request on the socket failed: %v", err)
			}
			_ = conn.Close() // whatever there was to say has been said
		})
	}
}

// serve serves one connection.
func (s *Server) serve(ctx context.Context, conn *wire.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	var request wire.Request
	stray, err := conn.Receive(&request)
	_ = stray.Close() // no request has an fd with it
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	switch request.Op {
	case wire.OpDeliver:
		return s.deliver(ctx, conn)
	case wire.OpList:
		return s.list(ctx, conn)
	case wire.OpStatus:
		return s.status(conn)
	}
	return conn.Send(wire.Answer{Error: fmt.Sprintf("there is no operation %q", request.Op)}, nil)
}

// deliver hands the peer's unit the session that is held for it, and finishes
// the session when the peer says that its fds are where they belong.
func (s *Server) deliver(ctx context.Context, conn *wire.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(deliveryTimeout)); err != nil {
		return err
	}
	unit, err := s.peerUnit(conn)
	if err != nil {
		return errors.Join(err, conn.Send(wire.Grant{Error: err.Error()}, nil))
	}
	s.Started(unit)
	if len(s.Holder.Held(unit)) == 0 {
		return conn.Send(wire.Grant{Unit: unit}, nil)
	}
	defer s.slot(ctx)()
	d, err := s.turn(ctx, unit)
	if err != nil {
		return errors.Join(err, conn.Send(wire.Grant{Unit: unit, Error: err.Error()}, nil))
	}
	defer func() { <-d.turn }()
	name, err := s.grant(ctx, conn, unit, d)
	if name == "" || err != nil {
		return err
	}
	var request wire.Request
	stray, err := conn.Receive(&request)
	_ = stray.Close()
	if err == nil && request.Op != wire.OpDelivered {
		err = fmt.Errorf("%w: %q instead of %q", wire.ErrPacket, request.Op, wire.OpDelivered)
	}
	if err != nil {
		return fmt.Errorf("%s: The delivery of session %s was broken off, it is held on: %w", unit, name, err)
	}
	var settled wire.Settled
	if err := s.settle(unit, name, &request); err != nil {
		s.Holder.Problem("%s: %v; the session %s is held on", unit, err, name)
		settled.Error = err.Error()
	} else {
		d.begun = false
	}
	return conn.Send(settled, nil)
}

func (s *Server) peerUnit(conn *wire.Conn) (string, error) {
	peer, err := conn.Peer()
	if err != nil {
		return "", err
	}
	defer func() { _ = peer.Close() }() // a pidfd has nothing to flush
	return s.UnitOf(peer)
}

// slot waits until few enough deliveries are under way, but not for ever: one
// that hangs must not keep the others from theirs. It returns what ends it.
func (s *Server) slot(ctx context.Context) (done func()) {
	ctx, stop := context.WithTimeout(ctx, slotTimeout)
	defer stop()
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }
	case <-ctx.Done():
		return func() {}
	}
}

// delivery is the state of the deliveries to one unit in this boot.
type delivery struct {
	turn chan struct{} // holds a value while one is under way
	// What follows belongs to whoever has the turn.
	empty bool // the unit's store is known to be empty, as the unit did not run
	begun bool // a session was given out and not finished
}

func newDelivery() *delivery { return &delivery{turn: make(chan struct{}, 1)} }

// turn waits until no other delivery to unit is under way.
func (s *Server) turn(ctx context.Context, unit string) (*delivery, error) {
	s.mu.Lock()
	if s.deliveries == nil {
		s.deliveries = map[string]*delivery{}
	}
	d := s.deliveries[unit]
	if d == nil {
		d = newDelivery()
		s.deliveries[unit] = d
	}
	s.mu.Unlock()
	ctx, stop := context.WithTimeout(ctx, requestTimeout)
	defer stop()
	select {
	case d.turn <- struct{}{}:
		return d, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another delivery to %s is under way: %w", unit, context.Cause(ctx))
	}
}

// grant sends the unit's session to its client and returns the session's name,
// or an empty one when it has said that there is none to be had.
func (s *Server) grant(ctx context.Context, conn *wire.Conn, unit string, d *delivery) (string, error) {
	held := s.Holder.Held(unit)
	if len(held) == 0 { // delivered while this client waited for its turn
		return "", conn.Send(wire.Grant{Unit: unit}, nil)
	}
	name := held[0]
	empty := d.empty
	d.empty = false // from now on the unit may run
	if !empty && !d.begun {
		if err := s.mayBegin(ctx, unit); err != nil {
			s.Holder.Problem("%s: %v; the session %s is held on", unit, err, name)
			return "", conn.Send(wire.Grant{Unit: unit, Error: err.Error()}, nil)
		}
	}
	d.begun = true
	return name, conn.Send(wire.Grant{Unit: unit, Session: name}, s.Holder.Session(name).FD())
}

// mayBegin refuses to mix what is held with what the unit has stored since it
// was started without it: the unit could not tell old from new. What an
// interrupted delivery has left in the store is no obstacle to the next, as
// the service manager takes no open file twice.
func (s *Server) mayBegin(ctx context.Context, unit string) error {
	n, err := s.stored(ctx, unit)
	if err == nil && n > 0 {
		err = fmt.Errorf("its fd store has %d fds already, and fds of before the live update are not mixed with them", n)
	}
	return err
}

// stored returns how many fds are in a unit's store.
func (s *Server) stored(ctx context.Context, unit string) (int, error) {
	stored, err := s.PID1.Stored(ctx, []string{unit})
	return stored[unit], err
}

// settle finishes a delivered session. Nothing of it may be missing in the
// unit's store: the service manager drops without an answer what is above
// FileDescriptorStoreMax=.
func (s *Server) settle(unit, name string, delivered *wire.Request) error {
	for _, lost := range delivered.Failed {
		s.Log.Err("%s: The fd %q of session %s was not delivered: %s", unit, lost.Name, name, lost.Reason)
	}
	if n := len(delivered.Failed); n > 0 {
		return fmt.Errorf("%d fds were not delivered, %d were", n, delivered.Stored)
	}
	if delivered.Stored > delivered.Max {
		return fmt.Errorf("its fd store has room for %d fds only, FileDescriptorStoreMax=, and %d were delivered", delivered.Max, delivered.Stored)
	}
	if err := s.Holder.Finish(name); err != nil {
		return err
	}
	s.Log.Info("%s: Delivered %d fds of session %s.", unit, delivered.Stored, name)
	return nil
}
