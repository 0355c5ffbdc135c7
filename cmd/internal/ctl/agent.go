// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// agentWait is how long the agent may take to register with polkit, and to end.
const agentWait = 10 * time.Second

// startAgent starts what asks a user to authenticate, as systemctl does, if the user
// is at a terminal; stop ends it. Without it polkit refuses what needs authentication,
// unless the user's session has an agent.
func (d daemon) startAgent() (stop func()) {
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err != nil {
		return func() {}
	}
	ready, w, err := os.Pipe()
	if err != nil {
		return func() {}
	}
	defer ready.Close()
	const notify = "3" // the first of ExtraFiles
	// Without --fallback, which has been seen to leave a user without a login session
	// unasked (polkit 126).
	ctx, end := context.WithCancel(context.Background())
	agent := exec.CommandContext(ctx, d.agent, "--notify-fd", notify)
	agent.ExtraFiles = []*os.File{w}
	agent.Cancel = func() error { return agent.Process.Signal(unix.SIGTERM) }
	agent.WaitDelay = agentWait
	err = agent.Start()
	_ = w.Close() // the agent has it, and closes it when it is ready
	if err != nil {
		end()
		return func() {}
	}
	if err := ready.SetReadDeadline(time.Now().Add(agentWait)); err == nil {
		_, _ = io.Copy(io.Discard, ready) // ready, or too late: polkit says what it means
	}
	return func() {
		end()
		_ = agent.Wait() // it was told to end, and is killed if it does not
	}
}
