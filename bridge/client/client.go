// SPDX-License-Identifier: Apache-2.0

// Package client gets a service live-update sessions of its own from fdbridged,
// whatever user it runs as and without /dev/liveupdate: for files that only the
// service itself can preserve, such as those of a virtual machine, or that it wants
// to preserve in an order and at a time of its own. Its unit must have opted in.
//
// Before a live update a service opens a session and preserves its files in it, as
// late as it likes while it stops:
//
//	s, err := client.Open(ctx, "guest")
//	err = s.Preserve(memory, 1)
//
// When it starts after the live update, it claims the session, takes its files out
// of it, finishes it, and says that it is done, in this order:
//
//	s, err := client.Claim(ctx, "guest")
//	if errors.Is(err, client.ErrNone) // nothing has come
//	memory, err := s.RetrieveFD(1)
//	err = s.Finish()
//	err = client.Done(ctx, "guest")
//
// Until then it can crash and claim the session again. The same in the words of the
// wire, for services that are not written in Go, is in package wire; what
// LUOSession= gives needs neither.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
)

// answerTimeout bounds each wait for an answer; fdbridged has one, or says why
// not, within 50 seconds, but for what the service manager has to take in.
const answerTimeout = 60 * time.Second

var (
	// ErrNone is what Claim returns when no session of that name has come.
	ErrNone = errors.New("no session of this name has come through a live update")
	// ErrRefused is what an error that fdbridged answered with answers errors.Is
	// for; its text says why.
	ErrRefused = wire.ErrRefused
)

// Open opens a session of this process's unit under a name of its choice, 1 to 255
// printable ASCII characters without a colon and a space, or returns the one that is
// open. The caller closes it when it likes: fdbridged has it, too, up to the next
// live update, which carries it with what was preserved in it, or until Done.
//
// ErrRefused: the name, a unit that has not opted in, too many sessions
// (wire.MaxSessions), one of that name that came and is not done with, or a machine
// without live update. Other errors are those of the socket. It waits for a minute
// and a fdbridged that is started again, or until ctx ends; where there is none in this
// boot, not at all. A service manager that starts very many units reads nothing for longer
// than that: after os.ErrDeadlineExceeded Open, and Done, can be called again.
func Open(ctx context.Context, name string) (*session.Session, error) {
	return ask(ctx, wire.SessionsPath, wire.OpOpenSession, name)
}

// Claim returns the session of this process's unit that came through a live update
// under this name, or ErrNone. The caller closes it; fdbridged has it, too, until
// Done, so that it can be claimed again. Other errors are as Open has them;
// ErrRefused also when the unit has another User= or Group= by now.
func Claim(ctx context.Context, name string) (*session.Session, error) {
	return ask(ctx, wire.SessionsPath, wire.OpClaimSession, name)
}

// Done lets go of a session that came, after Finish, or of one that was opened: when
// its last descriptor is closed, too, the kernel lets go of what is in it. Errors
// are as Claim has them. That there is no such session is none.
func Done(ctx context.Context, name string) error {
	_, err := ask(ctx, wire.SessionsPath, wire.OpDoneSession, name)
	return err
}

// ask asks until fdbridged has answered: each of the operations can be repeated.
func ask(ctx context.Context, path, op, name string) (*session.Session, error) {
	var patience wire.Patience
	for {
		s, err := try(ctx, path, op, name)
		if !passing(err) && !absent(path, err) {
			return s, err
		}
		if err := patience.Wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// absent tells whether there was an fdbridged in this boot, which has taken its socket
// away: its directory stays.
func absent(path string, err error) bool {
	if !errors.Is(err, unix.ENOENT) {
		return false
	}
	_, gone := os.Stat(filepath.Dir(path))
	return gone == nil
}

// passing tells whether the next fdbridged may have an answer.
func passing(err error) bool {
	for _, broken := range []error{io.EOF, unix.ECONNRESET, unix.EPIPE, unix.ECONNREFUSED, unix.EAGAIN} {
		if errors.Is(err, broken) {
			return true
		}
	}
	return false
}

// try is ask with one fdbridged.
func try(ctx context.Context, path, op, name string) (*session.Session, error) {
	conn, err := wire.Dial(path)
	if err != nil {
		return nil, fmt.Errorf("fdbridged cannot be reached: %w", err)
	}
	defer func() { _ = conn.Close() }() // it has answered, or never will
	var answer wire.Session
	if err = conn.SetDeadline(time.Now().Add(answerTimeout)); err == nil {
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
		err = conn.Send(wire.Request{Op: op, Name: name}, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("ask fdbridged for %q of the session %q: %w", op, name, err)
	}
	f, err := conn.Receive(&answer)
	switch {
	case err != nil:
		return nil, errors.Join(fmt.Errorf("wait for fdbridged's answer to %q of the session %q: %w", op, name, err), context.Cause(ctx))
	case answer.Error != "":
		_ = f.Close() // none is due
		return nil, fmt.Errorf("%w %q of the session %q: %s", ErrRefused, op, name, answer.Error)
	case op == wire.OpDoneSession:
		_ = f.Close() // as above
		return nil, nil
	case answer.Session == "":
		_ = f.Close() // as above
		return nil, fmt.Errorf("%q: %w", name, ErrNone)
	case f == nil:
		return nil, fmt.Errorf("%w: no session came with the answer to %q", wire.ErrPacket, op)
	}
	return session.Adopt(session.System{}, f), nil
}
