// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

var hello = wire.Hello{Nonce: "now", BootID: "boot", Release: "7.2"}

// dial starts an agent and returns the host's end after its hello.
func dial(t *testing.T) *wire.Conn {
	t.Helper()
	host, guest := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serve(guest, hello) }()
	t.Cleanup(func() {
		host.Close()
		if err := <-ended; err != nil {
			t.Errorf("agent ended with %v", err)
		}
	})
	conn := wire.NewConn(host)
	m, err := conn.Read()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wire.Message{Hello: &hello}, m); diff != "" {
		t.Fatalf("no hello (-want +got):\n%s", diff)
	}
	return conn
}

func ask(t *testing.T, conn *wire.Conn, r wire.Request) wire.Reply {
	t.Helper()
	if err := conn.Write(wire.Message{Request: &r}); err != nil {
		t.Fatal(err)
	}
	m, err := conn.Read()
	if err != nil {
		t.Fatal(err)
	}
	return *m.Reply
}

func TestAgentRunsCommands(t *testing.T) {
	conn := dial(t)
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	tests := map[string]struct {
		request wire.Request
		want    wire.Reply
	}{
		"output and status": {wire.Request{Argv: sh("echo out; echo err >&2; exit 3")},
			wire.Reply{Status: 3, Stdout: []byte("out\n"), Stderr: []byte("err\n")}},
		"stdin":  {wire.Request{Argv: []string{"cat"}, Stdin: []byte("in")}, wire.Reply{Stdout: []byte("in")}},
		"env":    {wire.Request{Argv: sh("echo $A $HOME"), Env: []string{"A=b"}}, wire.Reply{Stdout: []byte("b /root\n")}},
		"signal": {wire.Request{Argv: sh("kill -9 $$")}, wire.Reply{Status: 137}},
		"background": {wire.Request{Argv: sh("sleep 60 & echo out; kill $!")},
			wire.Reply{Stdout: []byte("out\n")}},
		"timeout": {wire.Request{Argv: sh("echo out; exec sleep 60"), Timeout: 200 * time.Millisecond},
			wire.Reply{Error: "sh: killed after 200ms", Stdout: []byte("out\n")}},
		"no such program": {wire.Request{Argv: []string{"/nonexistent"}},
			wire.Reply{Error: "fork/exec /nonexistent: no such file or directory"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.request.Nonce, test.request.ID = hello.Nonce, 5
			if test.request.Timeout == 0 {
				test.request.Timeout = time.Minute
			}
			test.want.Nonce, test.want.ID = hello.Nonce, 5
			got := ask(t, conn, test.request)
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("reply differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAgentAnswersOthersWhileACommandRuns(t *testing.T) {
	conn := dial(t)
	fifo := filepath.Join(t.TempDir(), "go")
	long := wire.Request{Nonce: hello.Nonce, ID: 1, Timeout: time.Minute,
		Argv: []string{"sh", "-c", "until test -e " + fifo + "; do sleep 0.01; done"}}
	if err := conn.Write(wire.Message{Request: &long}); err != nil {
		t.Fatal(err)
	}
	if r := ask(t, conn, wire.Request{Nonce: hello.Nonce, ID: 2, Path: fifo, Mode: 0o644}); r.ID != 2 {
		t.Fatalf("reply to %d came first", r.ID)
	}
	if m, err := conn.Read(); err != nil || m.Reply.ID != 1 {
		t.Fatalf("no reply to the long command: %v %v", m, err)
	}
}

func TestAgentIgnoresRequestsForItsPredecessor(t *testing.T) {
	conn := dial(t)
	path := filepath.Join(t.TempDir(), "file")
	stale := wire.Request{Nonce: "before", ID: 1, Path: path, Mode: 0o644}
	if err := conn.Write(wire.Message{Request: &stale}); err != nil {
		t.Fatal(err)
	}
	// A reply to it could come after some to others.
	for id := range uint64(100) {
		r := ask(t, conn, wire.Request{Nonce: hello.Nonce, ID: 2 + id, Read: true, Path: path})
		if r.ID != 2+id || !strings.Contains(r.Error, "no such file") {
			t.Fatalf("the stale request was served: %+v", r)
		}
	}
}

func TestAgentMovesFiles(t *testing.T) {
	conn := dial(t)
	path := filepath.Join(t.TempDir(), "new/dir/file")
	put := wire.Request{Nonce: hello.Nonce, ID: 1, Path: path, Data: []byte("a\x00b"), Mode: 0o750}
	if r := ask(t, conn, put); r.Error != "" {
		t.Fatal(r.Error)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("file written as %v, %v", st, err)
	}
	if r := ask(t, conn, wire.Request{Nonce: hello.Nonce, ID: 2, Read: true, Path: path}); string(r.Data) != "a\x00b" {
		t.Errorf("file read as %+v", r)
	}
	if err := os.Truncate(path, wire.MaxBytes+1); err != nil {
		t.Fatal(err)
	}
	r := ask(t, conn, wire.Request{Nonce: hello.Nonce, ID: 3, Read: true, Path: path})
	if !strings.Contains(r.Error, "larger than") {
		t.Errorf("too large a file: %+v", r)
	}
}
