// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// port returns a client and the guest's end of its port.
func port(t *testing.T) (*client, net.Conn) {
	t.Helper()
	host, guest := net.Pipe()
	t.Cleanup(func() { host.Close(); guest.Close() })
	return newClient(host), guest
}

func write(t *testing.T, guest net.Conn, m wire.Message) {
	t.Helper()
	if err := wire.NewConn(guest).Write(m); err != nil {
		t.Fatal(err)
	}
}

// start calls the agent in the background and returns the request that came
// out in the guest.
func start(t *testing.T, c *client, guest net.Conn) (wire.Request, <-chan error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := c.call(context.Background(), wire.Request{Argv: []string{"true"}})
		done <- err
	}()
	m, err := wire.NewConn(guest).Read()
	if err != nil {
		t.Fatal(err)
	}
	return *m.Request, done
}

func TestClientTakesOnlyTheReplyToItsRequest(t *testing.T) {
	c, guest := port(t)
	write(t, guest, wire.Message{Hello: &wire.Hello{Nonce: "n2", BootID: "b2"}})
	if _, err := c.greeted(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	request, done := start(t, c, guest)
	if request.Nonce != "n2" {
		t.Errorf("request has nonce %q", request.Nonce)
	}
	write(t, guest, wire.Message{Reply: &wire.Reply{Nonce: "n1", ID: request.ID, Error: "stale"}})
	write(t, guest, wire.Message{Reply: &wire.Reply{Nonce: "n2", ID: request.ID + 9, Error: "other"}})
	write(t, guest, wire.Message{Reply: &wire.Reply{Nonce: "n2", ID: request.ID}})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClientNoticesTheNextKernel(t *testing.T) {
	c, guest := port(t)
	write(t, guest, wire.Message{Hello: &wire.Hello{Nonce: "n1", BootID: "b1"}})
	if _, err := c.greeted(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	_, done := start(t, c, guest)
	next := make(chan wire.Hello, 1)
	go func() {
		hello, _ := c.greeted(context.Background(), "b1")
		next <- hello
	}()
	// The old kernel was cut off in the middle of a reply.
	if _, err := io.WriteString(guest, `{"reply":{"nonce":"n1","stdout":"aG`); err != nil {
		t.Fatal(err)
	}
	want := wire.Hello{Nonce: "n2", BootID: "b2"}
	write(t, guest, wire.Message{Hello: &want})
	if diff := cmp.Diff(want, <-next); diff != "" {
		t.Errorf("hello differs (-want +got):\n%s", diff)
	}
	if err := <-done; !errors.Is(err, errGone) {
		t.Errorf("what ran in the old kernel ended with %v, want %v", err, errGone)
	}
}

func TestAnAgentStartedAgainIsNotAnotherBoot(t *testing.T) {
	c, guest := port(t)
	write(t, guest, wire.Message{Hello: &wire.Hello{Nonce: "n1", BootID: "b1"}})
	write(t, guest, wire.Message{Hello: &wire.Hello{Nonce: "n2", BootID: "b1"}})
	guest.Close()
	if hello, err := c.greeted(t.Context(), "b1"); !errors.Is(err, io.EOF) {
		t.Errorf("got hello %+v, error %v, want io.EOF", hello, err)
	}
}

func TestEndOfThePortEndsEveryWait(t *testing.T) {
	c, guest := port(t)
	write(t, guest, wire.Message{Hello: &wire.Hello{Nonce: "n1", BootID: "b1"}})
	if _, err := c.greeted(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	_, done := start(t, c, guest)
	guest.Close()
	if err := <-done; !errors.Is(err, errGone) {
		t.Errorf("call ended with %v, want %v", err, errGone)
	}
	if _, err := c.call(t.Context(), wire.Request{}); !errors.Is(err, io.EOF) {
		t.Errorf("a later call ended with %v, want io.EOF", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	c, guest := port(t)
	write(t, guest, wire.Message{Hello: &wire.Hello{Nonce: "n1", BootID: "b1"}})
	if _, err := c.greeted(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.call(ctx, wire.Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("call ended with %v", err)
	}
	if _, err := c.greeted(ctx, "b1"); !errors.Is(err, context.Canceled) {
		t.Errorf("wait for a hello ended with %v", err)
	}
}
