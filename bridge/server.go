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
	"github.com/fdbridge/fdbridge/units/generator"
)

const (
	// requestTimeout bounds how long a client may take to say what it wants, and to
	// take an answer.
	requestTimeout = 30 * time.Second
	// stopTimeout is how long deliveries may go on when fdbridged is stopped;
	// TimeoutStopSec= of its unit is above it.
	stopTimeout = 8 * time.Second
	// maxConns bounds how many clients are served at a time; others wait, and are
	// not even told to. It is more than the units that a machine starts at a time.
	maxConns = 4096
)

// PID1 is what a Server asks the service manager; units.Reader does it.
type PID1 interface {
	Stores(ctx context.Context) ([]units.Store, error)
	Entries(ctx context.Context, unit string) ([]units.Entry, error)
	Stored(ctx context.Context, units []string) (map[string]int, error)
	Idle(ctx context.Context, units []string) (map[string]bool, error)
	OptedIn(ctx context.Context, units []string) ([]units.Store, error)
	Identity(ctx context.Context, unit string) (units.Identity, error)
	Store(ctx context.Context, unit string) (*units.Store, error)
}

// Server serves fdbridge's local socket.
type Server struct {
	Holder *Holder
	PID1   PID1
	// UnitOf returns the unit of a process: units.UnitOf but in tests.
	UnitOf func(pidfd *fd.FD) (string, error)
	// Duplicator is for a look at what is in a store: units.OpenDuplicator(1)
	// but in tests.
	Duplicator func() (Duplicator, error)
	// Facts is that of generator.Current.
	Facts func(unit string) (facts generator.Facts, loaded bool)
	// Excluded is that of config.Current.
	Excluded func(unit string) bool
	// RequestTimeout and QueueTimeout are NewServer's but in tests.
	RequestTimeout, QueueTimeout time.Duration
	// WaitInterval is wire.WaitInterval but in tests.
	WaitInterval time.Duration
	// StartsDir is units.StartsDir but in tests.
	StartsDir string
	// Started is told of each unit that asks for its fds.
	Started func(unit string)
	// LostFile is LostFile but in tests.
	LostFile string
	// Machine is what is known of the machine; the Server adds what it holds.
	Machine wire.Status
	Log     *journal.Log

	idle *units.Idle // of when Begin was called

	mu     sync.Mutex
	turns  map[string]chan struct{} // by unit: holds a value while it has a delivery
	slots  chan struct{}            // as many as there may be deliveries at a time
	took   map[string]time.Duration // by unit: how long its delivery took
	visits map[string]int           // by unit: its connections to ServeSessions

	complaints complaints
}

// NewServer returns a Server whose fields are to be set.
//
// Deliveries take turns: PID 1 takes one fd after the other, whoever sends it,
// and when all units of a boot send theirs at a time, none can start before
// nearly all are served.
func NewServer() *Server {
	return &Server{
		turns: map[string]chan struct{}{}, slots: make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		took: map[string]time.Duration{}, visits: map[string]int{}, RequestTimeout: requestTimeout, QueueTimeout: queueTimeout,
	}
}

// Begin looks at the units that something is held for: the stores of those that
// are stopped and have nothing in theirs need not be looked at when they want
// their fds, at a time when PID 1 has much to do. Units that are started from now
// on must find the socket. It is called before Serve, which lets go of what it has found.
func (s *Server) Begin(ctx context.Context) (err error) {
	s.idle, err = units.WatchIdle(s.StartsDir, func() (map[string]bool, error) {
		return s.PID1.Idle(ctx, s.Holder.Units())
	})
	return err
}

// Serve serves listener until it is closed, and waits for the connections that
// are open then. When ctx ends, those to whom something was granted have eight
// seconds left, and the others none: they will find the next fdbridged.
func (s *Server) Serve(ctx context.Context, listener *wire.Listener) error {
	defer func() { _ = s.idle.Close() }() // it is only read
	return s.serveAll(ctx, listener, s.serve)
}

// serveAll serves each connection with serve.
func (s *Server) serveAll(ctx context.Context, listener *wire.Listener, serve func(context.Context, *wire.Conn) error) error {
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
			stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now().Add(stopTimeout)) })
			defer stop()
			if err := serve(ctx, conn); err != nil {
				s.Log.Warning("A request of %s on the socket failed: %v", peerName(conn), err)
			}
			_ = conn.Close() // whatever there was to say has been said
		})
	}
}

// serve serves one connection.
func (s *Server) serve(ctx context.Context, conn *wire.Conn) error {
	if err := limit(ctx, conn, s.RequestTimeout); err != nil {
		return err
	}
	request, err := receive(conn)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	switch request.Op {
	case wire.OpDeliver:
		return s.deliver(ctx, conn, request)
	case wire.OpDelivered, wire.OpReturned:
		return s.delivered(ctx, conn, request)
	case wire.OpList:
		return s.list(ctx, conn)
	case wire.OpStatus:
		return s.status(conn)
	case wire.OpShow:
		return s.show(ctx, conn, request.Unit)
	case wire.OpInspect:
		return s.inspect(conn, request.Session)
	case wire.OpDrop:
		return s.drop(ctx, conn, request.Unit)
	case wire.OpDeliverAs:
		return s.deliverAs(ctx, conn, request)
	case wire.OpWatch:
		return s.watch(ctx, conn)
	case wire.OpLUOSession, wire.OpDoneSession:
		return s.ownSession(ctx, conn, request)
	}
	err = fmt.Errorf("there is no operation %.32q", request.Op)
	return errors.Join(err, conn.Send(wire.Answer{Error: err.Error()}, nil))
}

// receive takes a request. It has a goroutine of its own, as the stack that reading takes
// would be kept as long as the client has to wait.
func receive(conn *wire.Conn) (*wire.Request, error) {
	request, read := &wire.Request{}, make(chan error, 1)
	go func() {
		stray, err := conn.Receive(request)
		_ = stray.Close() // no request has an fd with it
		read <- err
	}()
	return request, <-read
}

// limit bounds what is sent and received from now on, and by stopTimeout when
// the server is being stopped.
func limit(ctx context.Context, conn *wire.Conn, d time.Duration) error {
	err := conn.SetDeadline(time.Now().Add(d))
	if ctx.Err() != nil { // then what Serve has set must not be overwritten
		err = errors.Join(err, conn.SetDeadline(time.Now().Add(stopTimeout)))
	}
	return err
}
