// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestLineHasSecondsSinceTheStart(t *testing.T) {
	var out bytes.Buffer
	New(&out).Printf("built %d", 3)
	if got := out.String(); got != "vm    0.0s  built 3\n" {
		t.Errorf("line is %q", got)
	}
}

func TestFailedCommandShowsTheEndOfItsOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("sh", "-c", "seq 1 100; echo broken >&2; exit 3")
	err := New(io.Discard).Run(t.Context(), path, cmd)
	if err == nil {
		t.Fatal("a failed command is no error")
	}
	for _, want := range []string{"sh: exit status 3", path, "\n87\n", "100\nbroken"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not have %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "\n50\n") {
		t.Errorf("error has all of the output: %v", err)
	}
}

func TestCommandAndItsChildrenEndWithTheContext(t *testing.T) {
	// All of them inherit the write end, so it closes when the last has ended.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", "sleep 600 & echo >&3; sleep 600")
	cmd.ExtraFiles = []*os.File{w}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(io.Discard).Run(ctx, filepath.Join(t.TempDir(), "log"), cmd) }()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(killWait)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a child of the command lives on: %v", err)
	}
}
