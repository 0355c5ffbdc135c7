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
	// Timeout is how long Run should be given. After it Run takes at most
	// lastTimeout to come to an end, if the service manager answers, so that it
	// has ended before the 90 seconds are over after which a unit that has not
	// started fails by default.
	Timeout = 65 * time.Second
	// lastTimeout bounds how long fdbridged may take to note what has become of
	// a delivery, with a restart of it in between.
	lastTimeout = 15 * time.Second
	// connectTimeout bounds how long the unit's start waits for a fdbridged
	// that has crashed and comes back; the unit then starts without the fds,
	// which are held on.
	connectTimeout = 10 * time.Second
	// absentTimeout does so for one that was stopped, and may be started again
	// at once, as when it is updated, or not at all.
	absentTimeout = 3 * time.Second
	// answerTimeout bounds each wait for an answer of fdbridged, which has
	// one, or says why not, within 50 seconds.
	answerTimeout = 55 * time.Second
	// retryDelay is between two tries to connect.
	retryDelay = 20 * time.Millisecond
)

// Store is the unit's fd store; notify.Socket is the way to it.
type Store interface {
	Store(name string, f *fd.FD) error
	Remove(name string) error
	Barrier() error
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
}

var (
	// errUnanswered says that the connection to fdbridged is of no use any more.
	errUnanswered = errors.New("fdbridged did not answer")
	// errBroken says that fdbridged has crashed, or was stopped: the next one
	// can be asked.
	errBroken = fmt.Errorf("%w: the connection broke", errUnanswered)
)

// Passing tells whether an error is one that need not come again when the same
// is tried later: there was no memory or no room for a descriptor. The kernel's
// answer that a file cannot be restored does not pass, whatever it is: a failed
// retrieve stays failed (luo_retrieve_file in kernel/liveupdate/luo_file.c,
// Linux 7.2).
func Passing(err error) bool {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
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
// It gives up when ctx ends, and waits for fdbridged as long as the constants
// above say.
func (d *Deliverer) Run(ctx context.Context) (int, error) {
	for {
		n, err := d.try(ctx)
		if !errors.Is(err, errBroken) || ctx.Err() != nil {
			return n, err
		}
		time.Sleep(retryDelay) // one that hangs up at once must not be asked all the time
	}
}

// try is Run with one fdbridged.
func (d *Deliverer) try(ctx context.Context) (int, error) {
	conn, err := dial(ctx, d.Socket)
	if err != nil {
		return 0, fmt.Errorf("fdbridged cannot be reached, and holds on what it may hold for this unit: %w", err)
	}
	defer func() { _ = conn.Close() }() // fdbridged has answered, or never will
	var grant wire.Grant
	f, err := ask(ctx, conn, wire.Request{Op: wire.OpDeliver, Invocation: d.Invocation}, &grant)
	if err != nil {
		return 0, fmt.Errorf("ask fdbridged for the unit's fds: %w", err)
	}
	defer func() { _ = f.Close() }() // fdbridged has its own, and decides
	if grant.Error != "" {
		return 0, fmt.Errorf("fdbridged does not deliver: %s", grant.Error)
	}
	if grant.Session == "" {
		return 0, nil
	}
	u := unpacking{Deliverer: d, conn: conn, grant: &grant}
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

// settle tells fdbridged that all is in the store: the one that has granted it,
// or the next if the connection breaks. It goes on when ctx has ended, for a
// delivery that is not settled is in the way of the next one.
func (d *Deliverer) settle(ctx context.Context, conn *wire.Conn, delivered wire.Request) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer stop()
	for {
		var settled wire.Settled
		stray, err := ask(ctx, conn, delivered, &settled)
		_ = stray.Close() // no answer of this kind has an fd with it
		if err == nil && settled.Error != "" {
			return errors.New(settled.Error)
		}
		if !errors.Is(err, errBroken) || ctx.Err() != nil {
			return err
		}
		again, err := dial(ctx, d.Socket)
		if err != nil {
			return err
		}
		defer func() { _ = again.Close() }() // as above
		conn = again
	}
}

// dial connects to fdbridged, which may be on its way up again.
func dial(ctx context.Context, path string) (*wire.Conn, error) {
	start := time.Now()
	for {
		conn, err := wire.Dial(path)
		if err == nil {
			return conn, nil
		}
		patience := connectTimeout
		if errors.Is(err, unix.ENOENT) {
			patience = absentTimeout
		}
		if time.Since(start) > patience {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(retryDelay):
		}
	}
}

// ask sends a request and waits for the answer, and the fd beside it, which the
// caller owns, until ctx ends. An error is errUnanswered, and errBroken when
// fdbridged has gone.
func ask(ctx context.Context, conn *wire.Conn, request wire.Request, answer any) (f *fd.FD, err error) {
	if err = conn.SetDeadline(time.Now().Add(answerTimeout)); err == nil {
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
		err = conn.Send(request, nil)
	}
	if err == nil {
		f, err = conn.Receive(answer)
	}
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE):
		return nil, fmt.Errorf("%w: no answer to %q: %w", errBroken, request.Op, err)
	}
	return nil, fmt.Errorf("%w to %q: %w", errUnanswered, request.Op, errors.Join(err, ctx.Err()))
}
