// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

// fakeQEMU puts a program that does what script says in the place of QEMU.
// Its working directory has nothing to do with the machine's.
func fakeQEMU(t *testing.T, script string) Config {
	t.Helper()
	bin := t.TempDir()
	program := "#!/bin/sh\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(bin, qemuProgram), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return Config{
		Name: "fake", Kernel: "/k", Image: "/i", Accel: TCG, Dir: t.TempDir(),
		Log: progress.New(io.Discard),
	}
}

func TestStartReportsWhatQEMUSaid(t *testing.T) {
	cfg := fakeQEMU(t, "echo no such image >&2; exit 1")
	_, err := Start(t.Context(), cfg)
	if err == nil {
		t.Fatal("a machine without QEMU was started")
	}
	for _, want := range []string{"no such image", "exit status 1", cfg.Dir} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not have %q: %v", want, err)
		}
	}
	line, err := os.ReadFile(filepath.Join(cfg.Dir, "qemu.cmd"))
	if err != nil || !strings.HasPrefix(string(line), qemuProgram+" -accel tcg") {
		t.Errorf("command line kept: %q, %v", line, err)
	}
}

func TestStartEndsWithItsContextAndKillsQEMU(t *testing.T) {
	cfg := fakeQEMU(t, "exec sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestLastWordsHaveThePanicAndTheEnd(t *testing.T) {
	lines := make([]string, 50)
	for i := range lines {
		lines[i] = "trace"
	}
	trace := strings.Join(lines, "\r\n")
	got := lastWords("boot\r\n[ 1.0] Kernel panic - not syncing: no root\r\n" + trace + "\r\nend\r\n")
	want := "Kernel panic - not syncing: no root\n" + strings.Repeat("trace\r\n", consoleTail-1) + "end"
	if got != want {
		t.Errorf("last words are %q, want %q", got, want)
	}
}
