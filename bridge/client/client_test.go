// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// serve answers one request on each connection with serve, and returns where, and
// what was asked.
func serve(t *testing.T, serve ...func(conn *wire.Conn)) (path string, asked func() []wire.Request) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	listener, err := wire.ListenToAll(path)
	if err != nil {
		t.Fatal(err)
	}
	var requests []wire.Request
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, serve := range serve {
			conn, err := listener.Accept()
			if err != nil {
				t.Errorf("accept: %v", err)
				return
			}
			var request wire.Request
			if _, err := conn.Receive(&request); err != nil {
				t.Errorf("receive: %v", err)
			}
			requests = append(requests, request)
			serve(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { <-done; _ = listener.Close() })
	return path, func() []wire.Request { <-done; return requests }
}

func hangUp(*wire.Conn) {}

// answer answers with a, and a pipe beside it if that is true.
func answer(t *testing.T, a wire.Session, with bool) func(conn *wire.Conn) {
	return func(conn *wire.Conn) {
		var f *fd.FD
		if with {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				t.Error(err)
				return
			}
			_ = unix.Close(p[1])
			f = fd.New(p[0])
			defer f.Close()
		}
		if err := conn.Send(a, f); err != nil {
			t.Errorf("send: %v", err)
		}
	}
}

func TestAnAnswerIsASessionOrAnError(t *testing.T) {
	session := wire.Session{Unit: "a.service", Session: "fdbridge/a.service/x"}
	refused := wire.Session{Unit: "a.service", Error: "it is not to be"}
	none := wire.Session{Unit: "a.service"}
	for name, test := range map[string]struct {
		op     string
		answer wire.Session
		with   bool
		want   error
	}{
		"a session":           {wire.OpOpenSession, session, true, nil},
		"one that came":       {wire.OpClaimSession, session, true, nil},
		"none that came":      {wire.OpClaimSession, none, false, ErrNone},
		"none that came, but": {wire.OpClaimSession, none, true, ErrNone},
		"refused":             {wire.OpOpenSession, refused, false, ErrRefused},
		"refused, with an fd": {wire.OpOpenSession, refused, true, ErrRefused},
		"done":                {wire.OpDoneSession, session, false, nil},
		"done, with an fd":    {wire.OpDoneSession, session, true, nil},
		"not done":            {wire.OpDoneSession, refused, false, ErrRefused},
		"without the fd":      {wire.OpOpenSession, session, false, wire.ErrPacket},
	} {
		t.Run(name, func(t *testing.T) {
			path, asked := serve(t, hangUp, answer(t, test.answer, test.with)) // the first one crashes
			s, err := ask(t.Context(), path, test.op, "x")
			if !errors.Is(err, test.want) || (s != nil) != (err == nil && test.op != wire.OpDoneSession) {
				t.Errorf("ask: %v, %v; want %v", s, err, test.want)
			}
			if errors.Is(test.want, ErrRefused) && !strings.Contains(err.Error(), "it is not to be") {
				t.Errorf("ask: %v, without what fdbridged said", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			want := wire.Request{Op: test.op, Name: "x"}
			if diff := cmp.Diff([]wire.Request{want, want}, asked()); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	path, _ := serve(t, func(conn *wire.Conn) {
		stop() // instead of an answer
		if _, err := conn.Receive(&wire.Request{}); !errors.Is(err, io.EOF) {
			t.Errorf("the client did not hang up: %v", err)
		}
	})
	if _, err := ask(ctx, path, wire.OpOpenSession, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("ask: %v, want Canceled", err)
	}
	for _, path := range []string{path, filepath.Join(t.TempDir(), "none")} {
		if _, err := ask(ctx, path, wire.OpOpenSession, "x"); err == nil {
			t.Errorf("ask at %s: no error", path)
		}
	}
}

func TestAnFdbridgedThatIsReplacedIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // it takes no time
		start := time.Now()
		_, err := ask(t.Context(), filepath.Join(dir, "none"), wire.OpOpenSession, "x")
		if waited := time.Since(start); !errors.Is(err, unix.ENOENT) || waited < wire.AbsentTimeout || waited > 2*wire.AbsentTimeout {
			t.Errorf("ask: %v after %v, want ENOENT after %v", err, waited, wire.AbsentTimeout)
		}
	})
}

func TestWithoutAnFdbridgedThereIsAnErrorAtOnce(t *testing.T) {
	if _, err := ask(t.Context(), filepath.Join(t.TempDir(), "none", "none"), wire.OpOpenSession, "x"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("ask: %v, want ENOENT", err)
	}
}
