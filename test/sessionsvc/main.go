// SPDX-License-Identifier: Apache-2.0

// Command sessionsvc is a service of the scenarios in the VM that has live-update
// sessions of its own.
//
//	sessionsvc [NAME...]
//
// It claims each session, or takes it from $LISTEN_FDS if it is there, and reads the
// memfd that is in it under a token of its own; it ends what has come, opens each
// session that it has not been given, and preserves a memfd in it that says so. What
// it found it writes to report in $RUNTIME_DIRECTORY, a line each.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/client"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// token is where the memfd is in each session.
const token = 4711

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sessionsvc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err != nil {
		return err
	}
	passed, err := notify.Listen()
	if err != nil {
		return err
	}
	lines := []string{fmt.Sprint("uid ", os.Getuid())}
	for _, p := range passed {
		line, err := given(p)
		if err != nil {
			return fmt.Errorf("the session %q: %w", p.Name, err)
		}
		lines = append(lines, "passed "+p.Name+" "+line)
	}
	var own []*session.Session // kept until the end, for the first to tell of fdbridged's
	for _, name := range names {
		came, s, err := owned(ctx, name)
		if err != nil {
			came = err.Error()
		}
		lines, own = append(lines, name+" "+came), append(own, s)
	}
	report := filepath.Join(os.Getenv("RUNTIME_DIRECTORY"), "report")
	if err := os.WriteFile(report, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		return err
	}
	if err := socket.Ready("running"); err != nil {
		return err
	}
	<-ctx.Done()
	for _, s := range own {
		err = errors.Join(err, s.Close())
	}
	return err
}

// given preserves a memfd in a new session of $LISTEN_FDS, or says what has come.
func given(p notify.Passed) (string, error) {
	s := session.Adopt(session.System{}, p.FD)
	out, err := s.Outgoing()
	if err != nil {
		return "", err
	}
	if out {
		err := preserve(s, p.Name)
		if errors.Is(err, session.ErrTokenUsed) {
			return "has it", nil
		}
		return "is new", err
	}
	return inside(s)
}

// owned says what has come in a session, and opens one for the next time.
func owned(ctx context.Context, name string) (came string, s *session.Session, err error) {
	switch s, err = client.Claim(ctx, name); {
	case errors.Is(err, client.ErrNone):
		came = "none"
	case err != nil:
		return "", nil, err
	default:
		if came, err = inside(s); err == nil {
			err = s.Finish()
		}
		if err = errors.Join(err, s.Close()); err == nil {
			err = client.Done(ctx, name)
		}
		if err != nil {
			return "", nil, err
		}
	}
	if s, err = client.Open(ctx, name); err == nil {
		err = preserve(s, name)
	}
	if errors.Is(err, session.ErrTokenUsed) { // it was started again
		return came + ", is open", s, nil
	}
	return came, s, err
}

// preserve puts a memfd that says whose it is into a session.
func preserve(s *session.Session, name string) error {
	raw, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := fd.New(raw)
	_, err = unix.Write(raw, []byte(name+" of "+os.Getenv("UNIT")))
	if err == nil {
		err = s.Preserve(f, token)
	}
	return errors.Join(err, f.Close())
}

// inside reads the memfd in a session that came.
func inside(s *session.Session) (string, error) {
	f, err := s.RetrieveFD(token)
	if err != nil {
		return "", err
	}
	buffer := make([]byte, 1000)
	var n int
	err = f.Do(func(raw int) (err error) {
		n, err = unix.Pread(raw, buffer, 0)
		return err
	})
	return string(buffer[:max(n, 0)]), errors.Join(err, f.Close())
}
