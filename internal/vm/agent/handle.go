// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// outputWait bounds how long output is still read from what a finished or
// killed command left running in the background.
const outputWait = 2 * time.Second

// baseEnv is what every command gets; a request adds to it.
var baseEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0",
}

func handle(r *wire.Request) wire.Reply {
	var reply wire.Reply
	var err error
	switch {
	case len(r.Argv) > 0:
		reply, err = command(r)
	case r.Read:
		reply.Data, err = readFile(r.Path)
	default:
		err = writeFile(r.Path, r.Data, os.FileMode(r.Mode))
	}
	if err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// command runs r.Argv in a process group of its own, which is killed as a
// whole when the time is over.
func command(r *wire.Request) (wire.Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	var stdout, stderr limited
	cmd.Env = append(append([]string{}, baseEnv...), r.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(r.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = outputWait
	err := cmd.Run()
	reply := wire.Reply{Stdout: stdout.data, Stderr: stderr.data}
	if cmd.ProcessState == nil {
		return reply, err
	}
	if ctx.Err() != nil {
		return reply, fmt.Errorf("%s: killed after %s", r.Argv[0], r.Timeout)
	}
	reply.Status = status(cmd.ProcessState)
	return reply, nil
}

// status is the exit status as a shell counts it.
func status(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// limited keeps the first wire.MaxBytes written to it and drops the rest.
type limited struct{ data []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.data = append(l.data, p[:min(len(p), wire.MaxBytes-len(l.data))]...)
	return len(p), nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, wire.MaxBytes+1))
	if len(data) > wire.MaxBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, wire.MaxBytes)
	}
	return data, err
}

// writeFile replaces the file at path, its directories included.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".agent-tmp"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
