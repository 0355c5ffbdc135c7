// SPDX-License-Identifier: Apache-2.0

// Package deliver is the unit's side of a delivery: it runs as a control
// process of the unit that is being started, before its main process, gets what
// is held for the unit from fdbridged and puts the files into the unit's fd
// store.
//
// It goes into a program that runs before each start of a service, so it
// imports nothing large. Whether the unit may have the files is decided by
// fdbridged.
package deliver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

const (
	// timeout bounds how long Run goes on once it is the unit's turn, and a wait for
	// fdbridged to say that it is not yet. After it Run takes at most lastTimeout
	// to come to an end, so that it has ended before startTimeout is over, which it asks
	// for at least when it begins. What the kernel takes for large files is not in that, see work.
	timeout = 65 * time.Second
	// startTimeout is what TimeoutStartSec= is by default: a unit that has not started
	// fails when it is over. The service manager is asked for as much, from then on, when
	// the delivery begins, and before and after whatever it is told, unless it was asked
	// within extendInterval.
	startTimeout   = 90 * time.Second
	extendInterval = 5 * time.Second
	// workInterval is how often it is asked while the kernel works.
	workInterval = 30 * time.Second
	// turnTimeout bounds how long a unit waits for its turn, which is longer than
	// fdbridged lets it.
	turnTimeout = 11 * time.Minute
	// lastTimeout bounds how long fdbridged may take to note what has become of
	// a delivery, with a restart of it in between.
	lastTimeout = 15 * time.Second
	// answerTimeout bounds each wait for an answer of fdbridged, which says every 20
	// seconds that it takes longer until the delivery begins.
	answerTimeout = 55 * time.Second
)

// Store is the unit's fd store; notify.Socket is the way to it.
type Store interface {
	Store(name string, f *fd.FD) error
	Remove(name string) error
	Barrier() error
	ExtendTimeout(wait time.Duration) error
}

// Deliverer delivers to the unit that this process belongs to.
type Deliverer struct {
	Socket string // wire.Path but in tests
	Kernel session.Kernel
	Store  Store
	// Max is FileDescriptorStoreMax= of the unit, which the service manager
	// tells its processes in $FDSTORE (systemd 254).
	Max int
	// Invocation is $INVOCATION_ID.
	Invocation string
	// Lost is called for each fd that can never be delivered.
	Lost func(name string, err error)
	// Altered is called for each fd that is delivered with another owner or mode than it had.
	Altered func(name string, err error)

	sessions int             // those that Sessions leaves in the store
	unread   bool            // something was sent to the store that may not have been taken in
	returned *wire.Request   // what fdbridged is to be told of the last delivery, which came to nothing
	removed  map[string]bool // what was removed by name, and a session of that name with it
	bound    *countdown      // of what goes on, nil when nothing does
	last     time.Duration   // in place of lastTimeout, in tests
	extended time.Time       // when the service manager was asked for startTimeout last
}

var (
	// errUnanswered says that the connection to fdbridged is of no use any more.
	errUnanswered = errors.New("fdbridged did not answer")
	// errBroken says that fdbridged has crashed, or was stopped: the next one
	// can be asked.
	errBroken = fmt.Errorf("%w: the connection broke", errUnanswered)
)

// Passing tells whether an error is one that need not come again when the same
// is tried later: there was no memory or no room for a descriptor, or it was broken off. The kernel's
// answer that a file cannot be restored does not pass, whatever it is: a failed
// retrieve stays failed (luo_retrieve_file in kernel/liveupdate/luo_file.c,
// Linux 7.2).
func Passing(err error) bool {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var kernel *session.Error
	return !errors.As(err, &kernel) && (errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOSPC))
}

// Run delivers what is held for the unit. It returns the number of fds that
// were put into the store, 0 and no error when nothing is held. With an error
// and no fds, nothing is in the store and all is held on; with both, all is in
// the store, and fdbridged may hold it on, too.
//
// It gives up when ctx ends, and takes as long as the constants above say: 80
// seconds in all, and again each time that fdbridged says that it is not the unit's turn
// yet. What it waits for the service manager is not in that, see tell, nor what the kernel
// takes for the files, see work.
func (d *Deliverer) Run(ctx context.Context) (int, error) {
	ctx, stop := d.within(ctx, timeout)
	defer stop()
	err := d.extend()
	if err == nil { // so that it shows how much room is left
		err = d.takenIn()
	}
	if err != nil {
		return 0, fmt.Errorf("%w; fdbridged holds on what it may hold for this unit", err)
	}
	for {
		n, err := d.try(ctx)
		if !errors.Is(err, errBroken) || ctx.Err() != nil {
			return n, errors.Join(err, d.giveUp(ctx))
		}
		time.Sleep(wire.RetryDelay) // one that hangs up at once must not be asked all the time
	}
}

// try is Run with one fdbridged.
func (d *Deliverer) try(ctx context.Context) (int, error) {
	conn, err := dial(ctx, d.Socket)
	if err != nil {
		return 0, fmt.Errorf("fdbridged cannot be reached, and holds on what it may hold for this unit: %w", err)
	}
	defer func() { _ = conn.Close() }() // fdbridged has answered, or never will
	grant, f, err := d.apply(ctx, conn)
	if err != nil {
		return 0, fmt.Errorf("ask fdbridged for the unit's fds: %w", err)
	}
	defer func() { _ = f.Close() }() // fdbridged has its own, and decides
	if grant.Error != "" {
		return 0, fmt.Errorf("fdbridged does not deliver: %s", grant.Error)
	}
	d.returned = nil // it is this one that counts, if there is one
	if grant.Session == "" {
		return 0, nil
	}
	u := unpacking{Deliverer: d, conn: conn, grant: grant}
	if f != nil {
		u.session = session.Adopt(d.Kernel, f)
	}
	if err := u.unpack(ctx); err != nil {
		return 0, u.giveBack(ctx, err)
	}
	_ = f.Close() // so that the session is gone when fdbridged lets go of it
	if err := d.settle(ctx, conn, u.delivered()); err != nil {
		return u.stored, fmt.Errorf("all fds of session %s are delivered, but fdbridged may hold them on: %w", grant.Session, err)
	}
	return u.stored, nil
}

// giveUp tells fdbridged over another connection that nothing of the last delivery is in the
// store, where that is so and it was not told.
func (d *Deliverer) giveUp(ctx context.Context) error {
	if d.returned == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	conn, err := dial(ctx, d.Socket)
	if err == nil {
		defer func() { _ = conn.Close() }() // fdbridged has answered, or never will
		err = d.settle(ctx, conn, *d.returned)
	}
	if err != nil {
		return fmt.Errorf("fdbridged was not told that nothing of it was delivered: %w", err)
	}
	d.returned = nil
	return nil
}

// apply asks for what is held for the unit and waits until it is its turn. The
// caller owns the fd.
func (d *Deliverer) apply(ctx context.Context, conn *wire.Conn) (*wire.Grant, *fd.FD, error) {
	return await(ctx, d, conn, wire.Request{Op: wire.OpDeliver, Invocation: d.Invocation}, func(g *wire.Grant) bool { return g.Wait })
}

// await is ask, and waits as long as fdbridged says in its answers that it has to.
func await[T any](ctx context.Context, d *Deliverer, conn *wire.Conn, request wire.Request, waits func(answer *T) bool) (*T, *fd.FD, error) {
	answer := new(T)
	f, err := ask(ctx, conn, request, answer)
	for start := time.Now(); err == nil && waits(answer); {
		_ = f.Close() // there is none
		if time.Since(start) > turnTimeout {
			return nil, nil, fmt.Errorf("fdbridged had it wait for %v", turnTimeout)
		}
		if err := d.extend(); err != nil {
			return nil, nil, err
		}
		if d.bound != nil {
			d.bound.restart()
		}
		answer = new(T)
		f, err = answered(ctx, conn, &request, answer)
	}
	return answer, f, err
}

// settle tells fdbridged that all is in the store, or nothing: the one that has granted it,
// or the next if the connection breaks. It goes on when ctx has ended, for a
// delivery that is not settled is in the way of the next one.
func (d *Deliverer) settle(ctx context.Context, conn *wire.Conn, request wire.Request) error {
	ctx = context.WithoutCancel(ctx)
	for start := time.Now(); ; {
		err := d.conclude(ctx, conn, request)
		if !errors.Is(err, errBroken) || time.Since(start) > lastTimeout {
			return err
		}
		again, err := dial(ctx, d.Socket)
		if err != nil {
			return err
		}
		defer func() { _ = again.Close() }() // fdbridged has answered, or never will
		conn = again
	}
}

// conclude tells fdbridged what has become of a delivery, and waits until it has noted
// that.
func (d *Deliverer) conclude(ctx context.Context, conn *wire.Conn, request wire.Request) error {
	var settled wire.Settled
	stray, err := d.patiently(ctx, conn, request, &settled)
	_ = stray.Close() // no answer of this kind has an fd with it
	if err == nil && settled.Error != "" {
		err = errors.New(settled.Error)
	}
	return err
}

// patiently is ask for what fdbridged has to tell the service manager before it answers: it
// waits as long as that takes in no messages, and for lastTimeout before and after.
func (d *Deliverer) patiently(ctx context.Context, conn *wire.Conn, request wire.Request, answer any) (*fd.FD, error) {
	bounded, stop := context.WithTimeout(ctx, cmp.Or(d.last, lastTimeout))
	defer stop()
	f, err := ask(bounded, conn, request, answer)
	if err == nil || bounded.Err() == nil || ctx.Err() != nil {
		return f, err
	}
	if err := d.barrier(); err != nil {
		return nil, err
	}
	bounded, stop = context.WithTimeout(ctx, cmp.Or(d.last, lastTimeout))
	defer stop()
	return answered(bounded, conn, &request, answer)
}

// dial connects to fdbridged, which may be on its way up again. The unit starts without
// the fds, which are held on, when that takes too long.
func dial(ctx context.Context, path string) (*wire.Conn, error) {
	var patience wire.Patience
	for {
		conn, err := wire.Dial(path)
		if err == nil {
			return conn, nil
		}
		if err := patience.Wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// ask sends a request and waits for the answer, and the fd beside it, which the
// caller owns, until ctx ends. An error is errUnanswered, and errBroken when
// fdbridged has gone.
func ask(ctx context.Context, conn *wire.Conn, request wire.Request, answer any) (f *fd.FD, err error) {
	if err := send(ctx, conn, request); err != nil {
		return nil, err
	}
	return answered(ctx, conn, &request, answer)
}

// send is ask for a request that has no answer.
func send(ctx context.Context, conn *wire.Conn, request wire.Request) error {
	err := conn.SetDeadline(time.Now().Add(answerTimeout))
	if err == nil {
		err = conn.Send(request, nil)
	}
	if err != nil {
		return unanswered(ctx, &request, err)
	}
	return nil
}

// answered is ask for the next answer to a request that has been sent.
func answered(ctx context.Context, conn *wire.Conn, request *wire.Request, answer any) (f *fd.FD, err error) {
	if err = conn.SetDeadline(time.Now().Add(answerTimeout)); err == nil {
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
		f, err = conn.Receive(answer)
	}
	if err != nil {
		return nil, unanswered(ctx, request, err)
	}
	return f, nil
}

func unanswered(ctx context.Context, request *wire.Request, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("%w: no answer to %q: %w", errBroken, request.Op, err)
	}
	return fmt.Errorf("%w to %q: %w", errUnanswered, request.Op, errors.Join(err, context.Cause(ctx)))
}
