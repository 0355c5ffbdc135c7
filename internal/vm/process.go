// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// process is one QEMU, from its start to its end.
type process struct {
	cmd    *exec.Cmd
	port   net.Conn
	agent  *client
	exited chan struct{} // closed when QEMU has ended
	status error         // how it ended; read after exited is closed
}

// launch starts QEMU and watches for its end.
func launch(cfg Config) (*process, error) {
	argv := cfg.command()
	if err := os.WriteFile(filepath.Join(cfg.Dir, "qemu.cmd"), []byte(quote(argv)+"\n"), 0o755); err != nil {
		return nil, err
	}
	stderr, err := os.Create(cfg.stderrLog())
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), exited: make(chan struct{})}
	p.cmd.Stderr = stderr
	if cfg.Interactive {
		p.cmd.Stdin, p.cmd.Stdout = os.Stdin, os.Stdout
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig means this thread, not the process
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		stderr.Close()
		started <- err
		if err == nil {
			p.status = p.cmd.Wait()
			close(p.exited)
		}
	}()
	return p, <-started
}

// connect waits until QEMU has made the agent's socket, and connects to it.
func (p *process) connect(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, qemuWait)
	defer cancel()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			p.port, p.agent = conn, newClient(conn)
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-p.exited:
			return errors.New("qemu ended at once")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// state says whether QEMU runs or how it ended. When it is ending, which its
// port shows first, state waits a moment for that.
func (p *process) state() string {
	if p.agent != nil && p.agent.ended() {
		select {
		case <-p.exited:
		case <-time.After(exitWait):
		}
	}
	select {
	case <-p.exited:
		if p.status != nil {
			return "qemu has ended (" + p.status.Error() + ")"
		}
		return "qemu has ended"
	default:
		return "qemu runs"
	}
}

// kill ends QEMU at once and waits for it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.exited
	if p.port != nil {
		p.port.Close()
	}
}
