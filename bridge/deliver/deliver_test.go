// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// listen serves each connection to a socket with serve, one after the other.
func listen(t *testing.T, serve ...func(conn *wire.Conn)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	listener, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, serve := range serve {
			conn, err := listener.Accept()
			if err != nil {
				t.Errorf("accept: %v", err)
				return
			}
			if _, err := conn.Receive(&wire.Request{}); err != nil {
				t.Errorf("receive: %v", err)
			}
			serve(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { <-done; _ = listener.Close() })
	return socket
}

func TestAFdbridgedThatHangsUpIsAskedAgain(t *testing.T) {
	socket := listen(t, func(*wire.Conn) {}, func(*wire.Conn) {}, func(conn *wire.Conn) {
		if err := conn.Send(wire.Grant{Unit: "a.service"}, nil); err != nil {
			t.Errorf("send: %v", err)
		}
	})
	d := Deliverer{Socket: socket, Store: &recorder{}}
	if n, err := d.Run(t.Context()); n != 0 || err != nil {
		t.Errorf("Run: %d, %v", n, err)
	}
}

// What it has begun is not given to the unit again before fdbridged knows that nothing of it
// is there. A nil answer hangs up.
func TestFdbridgedIsToldThatNothingIsDelivered(t *testing.T) {
	granted := wire.Grant{Unit: "a.service", Session: "s", Token: 7}
	ask := wire.Request{Op: wire.OpDeliver, Invocation: "i"}
	file := wire.Request{Op: wire.OpFile, Session: "s", Token: 7}
	returned := wire.Request{Op: wire.OpReturned, Session: "s", Token: 7, Invocation: "i"}
	for name, c := range map[string]struct {
		answers [][]any // for each connection
		want    []wire.Request
	}{
		"it makes no sense":      {[][]any{{granted, "nonsense"}, {wire.Settled{}}}, []wire.Request{ask, file, returned}},
		"the next one refuses":   {[][]any{{granted, nil}, {wire.Grant{Error: "no"}}, {wire.Settled{}}}, []wire.Request{ask, file, ask, returned}},
		"the next one is broken": {[][]any{{granted, nil}, {granted, "nonsense"}, {wire.Settled{}}}, []wire.Request{ask, file, ask, file, returned}},
		"the next one has none":  {[][]any{{granted, nil}, {wire.Grant{}}}, []wire.Request{ask, file, ask}},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "socket")
			listener, err := wire.Listen(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			var got []wire.Request
			served := make(chan error, 1)
			go func() {
				var failed error
				for _, answers := range c.answers {
					failed = errors.Join(failed, serveAnswers(listener, answers, &got))
				}
				served <- failed
			}()
			d := Deliverer{Socket: socket, Store: &recorder{}, Invocation: "i"}
			n, err := d.Run(t.Context())
			if n != 0 || err == nil == (c.want[len(c.want)-1].Op == wire.OpReturned) || err != nil && strings.Contains(err.Error(), "was not told") {
				t.Errorf("Run: %d, %v", n, err)
			}
			if err := <-served; err != nil {
				t.Fatal(err)
			}
			for i := range got {
				got[i].Reason = ""
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

// serveAnswers answers the requests of a client, which is to hang up then.
func serveAnswers(listener *wire.Listener, answers []any, got *[]wire.Request) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, answer := range answers {
		var request wire.Request
		if _, err := conn.Receive(&request); err != nil {
			return err
		}
		*got = append(*got, request)
		if answer == nil {
			return nil
		}
		if err := conn.Send(answer, nil); err != nil {
			return err
		}
	}
	if _, err := conn.Receive(&wire.Request{}); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after that the client has not hung up: %v", err)
	}
	return nil
}

func TestAUnitThatIsStoppedDoesNotWaitForFdbridged(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	d := Deliverer{Store: &recorder{}, Socket: listen(t, func(conn *wire.Conn) {
		stop() // instead of an answer
		_, _ = conn.Receive(&wire.Request{})
	})}
	if n, err := d.Run(ctx); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %d, %v; want Canceled", n, err)
	}
	d.Socket = filepath.Join(t.TempDir(), "none")
	if n, err := d.Run(ctx); n != 0 || !errors.Is(err, context.Canceled) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("Run without a socket: %d, %v; want Canceled and ENOENT", n, err)
	}
}

func TestWhatFdbridgedSaysIsTheError(t *testing.T) {
	d := Deliverer{Store: &recorder{}, Socket: listen(t, func(conn *wire.Conn) {
		_ = conn.Send(wire.Grant{Unit: "a.service", Error: "no such luck"}, nil)
	})}
	n, err := d.Run(t.Context())
	if n != 0 || err == nil || err.Error() != "fdbridged does not deliver: no such luck" {
		t.Errorf("Run: %d, %v", n, err)
	}
}

// It may be told so often at once, when it has waited for the service manager.
func TestAUnitWaitsForItsTurn(t *testing.T) {
	store := &recorder{}
	d := Deliverer{Store: store, Socket: listen(t, func(conn *wire.Conn) {
		for _, grant := range []wire.Grant{{Wait: true, Error: "wait"}, {Wait: true}, {Wait: true}, {Unit: "a.service"}} {
			if err := conn.Send(grant, nil); err != nil {
				t.Errorf("send: %v", err)
			}
		}
	})}
	if n, err := d.Run(t.Context()); n != 0 || err != nil {
		t.Errorf("Run: %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{"extend"}, store.said); diff != "" {
		t.Errorf("the service manager was told (-want +got):\n%s", diff)
	}
}

// fdbridged has the file when it has copied it, which it says takes longer.
func TestAUnitWaitsForAFile(t *testing.T) {
	d := Deliverer{Store: &recorder{}, Socket: listen(t, func(conn *wire.Conn) {
		for _, wait := range []wire.File{{Wait: true, Error: "wait"}, {Wait: true}} {
			if err := conn.Send(wait, nil); err != nil {
				t.Errorf("send: %v", err)
			}
		}
		f := restored(t, "x", 0, 0)
		defer f.Close()
		if err := conn.Send(wire.File{}, f); err != nil {
			t.Errorf("send: %v", err)
		}
	})}
	conn, err := dial(t.Context(), d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	u := unpacking{Deliverer: &d, conn: conn, grant: &wire.Grant{}}
	f, err := u.fetch(t.Context(), place{"s", 1})
	if f == nil || err != nil {
		t.Errorf("fetch: %v", err)
	}
	_ = f.Close()
}

// extended is a recorder that tells when the service manager was asked for more time, and
// then grants it.
type extended struct {
	recorder
	d     *Deliverer
	asked chan struct{}
}

func (e *extended) ExtendTimeout(time.Duration) error {
	e.d.last = time.Minute
	close(e.asked)
	return nil
}

// While the service manager takes in no messages fdbridged cannot tell it what it has let go of.
func TestWhatFdbridgedWaitsForIsWaitedFor(t *testing.T) {
	store := &extended{asked: make(chan struct{})}
	d := Deliverer{last: 10 * time.Millisecond, Store: store, Socket: listen(t, func(conn *wire.Conn) {
		<-store.asked // which returns when the service manager goes on
		if err := conn.Send(wire.Settled{Error: "no such luck"}, nil); err != nil {
			t.Errorf("send: %v", err)
		}
	})}
	store.d = &d
	conn, err := dial(t.Context(), d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := d.conclude(t.Context(), conn, wire.Request{Op: wire.OpDelivered}); err == nil || err.Error() != "no such luck" {
		t.Errorf("conclude: %v; want what fdbridged says", err)
	}
}
