// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"encoding/json"
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
	"github.com/fdbridge/fdbridge/internal/fd"
)

// patience bounds the fdbridged's waits for its client.
const patience = 10 * time.Second

// ask asks an fdbridged that answers the one request it gets with packets, each
// with f beside it if that is not nil, and hangs up after them if it is told
// to. It returns the parts of the answer.
func ask(t *testing.T, op string, packets []any, f *fd.FD, hangUp bool) ([]wire.Answer, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := wire.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() { served <- answer(t, listener, op, packets, f, hangUp) }()
	var parts []wire.Answer
	err = wire.Ask(path, op, func(a *wire.Answer) { parts = append(parts, *a) })
	if err := <-served; err != nil {
		t.Errorf("the fdbridged: %v", err)
	}
	return parts, err
}

func answer(t *testing.T, listener *wire.Listener, op string, packets []any, f *fd.FD, hangUp bool) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	var request wire.Request
	_, err = conn.Receive(&request)
	if err = errors.Join(err, conn.SetDeadline(time.Now().Add(patience))); err != nil {
		return err
	}
	if diff := cmp.Diff(wire.Request{Op: op}, request); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	for _, packet := range packets {
		if err := conn.Send(packet, f); errors.Is(err, unix.EPIPE) {
			return nil // the client has hung up, as it does after its answer
		} else if err != nil {
			return err
		}
	}
	if hangUp {
		return nil
	}
	// A client that has its answer hangs up by itself; if it has left something
	// unread, the connection is reset.
	_, err = conn.Receive(&request)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("the client did not hang up: %w", err)
}

func TestAskCollectsAnAnswerUpToItsEnd(t *testing.T) {
	a := wire.Answer{Unit: &wire.Unit{Unit: "a.service", State: wire.StateHeld, Held: 2, HeldBytes: 4096}}
	b := wire.Answer{Lost: &wire.Lost{Unit: "b.service", Name: "x", Reason: "refused"}}
	c := wire.Answer{Problem: "something went wrong"}
	end := wire.Answer{End: true}
	for name, test := range map[string]struct {
		op      string
		packets []any
		want    []wire.Answer
	}{
		"several parts":        {wire.OpList, []any{b, a, c, end}, []wire.Answer{b, a, c}},
		"none":                 {wire.OpStatus, []any{end}, nil},
		"more after the end":   {wire.OpList, []any{a, end, b}, []wire.Answer{a}},
		"parts not known here": {wire.OpList, []any{json.RawMessage(`{"later":1}`), a, end}, []wire.Answer{{}, a}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, test.op, test.packets, nil, false)
			if err != nil {
				t.Errorf("Ask: %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAskFailsUnlessTheAnswerIsWhole(t *testing.T) {
	part := wire.Answer{Problem: "part"}
	for name, test := range map[string]struct {
		packets []any
		hangUp  bool
		want    error
	}{
		"an error":            {[]any{part, wire.Answer{Error: "no such thing"}}, false, wire.ErrRefused},
		"an error at the end": {[]any{part, wire.Answer{Error: "no such thing", End: true}}, false, wire.ErrRefused},
		"the end is missing":  {[]any{part}, true, io.EOF},
		"no JSON object":      {[]any{part, []string{"x"}}, false, wire.ErrPacket},
		"of another type":     {[]any{part, json.RawMessage(`{"end":"yes"}`)}, false, wire.ErrPacket},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, wire.OpList, test.packets, nil, test.hangUp)
			if !errors.Is(err, test.want) {
				t.Errorf("Ask: %v, want %v", err, test.want)
			}
			if errors.Is(test.want, wire.ErrRefused) && !strings.Contains(err.Error(), "no such thing") {
				t.Errorf("Ask: %v, without what fdbridged said", err)
			}
			if diff := cmp.Diff([]wire.Answer{part}, got); diff != "" {
				t.Errorf("parts before the error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAskWithoutAnFdbridgedFailsAtOnce(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "socket")
	err := wire.Ask(missing, wire.OpList, func(*wire.Answer) { t.Error("there is an answer") })
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), missing) {
		t.Errorf("Ask: %v, want ENOENT and the path", err)
	}
}

func TestAskClosesAnFDThatNobodyAskedFor(t *testing.T) {
	stray := pipe(t)
	before := len(fd.Open())
	if _, err := ask(t, wire.OpList, []any{wire.Answer{Problem: "x"}, wire.Answer{End: true}}, stray, false); err != nil {
		t.Errorf("Ask: %v", err)
	}
	if after := len(fd.Open()); after != before {
		t.Errorf("%d descriptors are owned, %d before", after, before)
	}
}
