// SPDX-License-Identifier: Apache-2.0

// Package progress tells a person what a slow program is doing: short lines
// with the seconds since it began, and the last line of a long command's
// output every now and then.
package progress

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// interval is how often a command that is still running is reported.
const interval = 10 * time.Second

// tailLines is how much of a failed command's output its error carries.
const tailLines = 15

// killWait bounds the wait for the end of a command that was told to stop.
const killWait = 5 * time.Second

// Log writes lines to a stream. Its methods may be called from several
// goroutines.
type Log struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

// New returns a Log whose clock starts now.
func New(out io.Writer) *Log { return &Log{out: out, start: time.Now()} }

// Printf writes one line.
func (l *Log) Printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "vm %6.1fs  %s\n", time.Since(l.start).Seconds(), fmt.Sprintf(format, args...))
}

// Run runs cmd, which must have been made without a context, until it ends or
// ctx does; then its whole process group is stopped. Its output goes to the file
// logPath, its last line is shown every ten seconds. The error of a command
// that failed has the end of its output and names the file.
func (l *Log) Run(ctx context.Context, logPath string, cmd *exec.Cmd) error {
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	err = l.watch(ctx, cmd.Process.Pid, done, logPath)
	if err != nil {
		return fmt.Errorf("%s: %w; the end of %s:\n%s", cmd.Args[0], err, logPath, tail(logPath, tailLines))
	}
	return nil
}

func (l *Log) watch(ctx context.Context, pid int, done <-chan error, logPath string) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			l.Printf("  %s", tail(logPath, 1))
		case <-ctx.Done():
			_ = syscall.Kill(-pid, syscall.SIGTERM)
			select {
			case <-done:
			case <-time.After(killWait):
				_ = syscall.Kill(-pid, syscall.SIGKILL)
				<-done
			}
			return ctx.Err()
		}
	}
}

// tail returns the last n lines of a file that are not empty.
func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
