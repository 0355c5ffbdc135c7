// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// watched runs monitor, printing to out, with an fdbridged that tells of one
// problem and then does nothing until it is hung up on.
func watched(t *testing.T, ctx context.Context, out io.Writer) (status int, stderr string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			served <- err
			return
		}
		var request wire.Request
		_, err = conn.Receive(&request)
		err = errors.Join(err, conn.Send(wire.Answer{}, nil), conn.Send(wire.Answer{Problem: "x"}, nil))
		if _, end := conn.Receive(&request); !errors.Is(end, io.EOF) {
			err = errors.Join(err, end)
		}
		served <- errors.Join(err, conn.Close())
	}()
	root := command(daemon{socket: socket}, host{}, screen{})
	root.SetContext(ctx)
	var said bytes.Buffer
	status = run(root, []string{"monitor"}, out, &said)
	if err := <-served; err != nil {
		t.Errorf("the fdbridged: %v", err)
	}
	return status, said.String()
}

// interrupting is a terminal at which ^C is pressed as soon as there is something.
type interrupting struct{ press func() }

func (i interrupting) Write(p []byte) (int, error) {
	i.press()
	return len(p), nil
}

func TestMonitorIsOverWhenItIsInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if status, stderr := watched(t, ctx, interrupting{stop}); status != 0 || stderr != "Monitoring fdbridged.\n" {
		t.Errorf("monitor ends with status %d and says %q", status, stderr)
	}
}

func TestMonitorIsOverWhenItCannotPrint(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if status, stderr := watched(t, t.Context(), full); status != 1 || !bytes.Contains([]byte(stderr), []byte(unix.ENOSPC.Error())) {
		t.Errorf("monitor ends with status %d and says %q", status, stderr)
	}
}
