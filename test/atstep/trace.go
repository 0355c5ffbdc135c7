// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heldPoll is how often it is looked whether a held program may go on.
const heldPoll = 5 * time.Millisecond

// tracer counts the steps of a process.
type tracer struct {
	*plan // nil when it was carried out, and the end of the process lets the program go
	pid   int
	steps int
	begun bool           // READY=1 was sent
	calls map[int]uint64 // what each thread has begun last
}

// signalIgnore lets the signals pass by with which a service is stopped: the
// program is what they are for.
func signalIgnore() { signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP) }

// follow waits for the stops of the process's threads until all have ended, or the
// plan is carried out.
func (t *tracer) follow() error {
	for {
		var status unix.WaitStatus
		thread, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return fmt.Errorf("wait for the program: %w", err)
		case !status.Stopped():
			continue
		}
		deliver := 0
		switch {
		case status.StopSignal() == unix.SIGTRAP|0x80:
			if err := t.stopped(thread); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			if t.plan == nil {
				return nil
			}
		case status>>16 == 0: // an event of ptrace's own otherwise
			deliver = int(status.StopSignal())
		}
		if err := ptrace(unix.PTRACE_SYSCALL, thread, uintptr(deliver)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("resume the program: %w", err)
		}
	}
}

// stopped looks at the system call that a thread begins or has made.
func (t *tracer) stopped(thread int) error {
	call, err := t.at(thread)
	if err != nil || call == nil {
		return err
	}
	step, err := call.step(thread)
	switch {
	case err != nil || step == "":
		return err
	case strings.HasPrefix(step, "READY=1") && !t.begun && t.ready:
		t.begun, t.steps = true, 0
		return nil
	}
	if t.steps++; t.ready && !t.begun || !t.is(step, t.steps) {
		return nil
	}
	p := t.plan
	t.plan = nil
	if now, err := readPlan(p.dir); err != nil || now == nil || *now != *p {
		return err // there is another plan now, for another run
	}
	if err := p.done(step); err != nil {
		return err
	}
	if p.hold {
		return wait(filepath.Join(p.dir, "held"), step)
	}
	return unix.Kill(t.pid, unix.SIGKILL)
}

// is tells whether the n-th step is the one.
func (p *plan) is(step string, n int) bool {
	return p.at == n || p.name != "" && strings.HasPrefix(step, p.name)
}

// wait waits until a file is removed that names the step.
func wait(path, step string) error {
	err := os.WriteFile(path, []byte(step), 0o644)
	for err == nil {
		time.Sleep(heldPoll)
		_, err = os.Stat(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// call is a system call and its second argument.
type call struct{ number, second uint64 }

// busy is the number of a system call that has found the device open elsewhere.
const busy = ^uint64(0)

// at returns the system call that a thread is about to make, nil when it has made one,
// unless that is busy (struct ptrace_syscall_info in include/uapi/linux/ptrace.h).
func (t *tracer) at(thread int) (*call, error) {
	var info struct {
		op     uint8
		_      [3]byte
		_      uint32
		_, _   uint64
		number uint64 // or the result
		args   [6]uint64
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return nil, errno
	}
	switch {
	case info.op == unix.PTRACE_SYSCALL_INFO_ENTRY:
		t.calls[thread] = info.number
		return &call{info.number, info.args[1]}, nil
	case info.op == unix.PTRACE_SYSCALL_INFO_EXIT && t.calls[thread] == unix.SYS_OPENAT && unix.Errno(-info.number) == unix.EBUSY:
		return &call{number: busy}, nil
	}
	return nil, nil
}

// requests are the ioctls of include/uapi/linux/liveupdate.h.
var requests = map[uint64]string{
	0xBA00: "CREATE_SESSION", 0xBA01: "RETRIEVE_SESSION", 0xBA40: "PRESERVE_FD",
	0xBA41: "RETRIEVE_FD", 0xBA42: "FINISH", 0xBA43: "GET_NAME",
}

// step names the step that a system call of a thread is, if it is one.
func (c *call) step(thread int) (string, error) {
	switch c.number {
	case busy:
		return "EBUSY", nil
	case unix.SYS_EXIT_GROUP:
		return "exit", nil
	case unix.SYS_IOCTL:
		return requests[c.second], nil
	case unix.SYS_SENDMSG:
		text, err := payload(thread, c.second)
		return message(text), err
	}
	return "", nil
}

// message names the step of a message; one to the journal, or to PID 1 over
// D-Bus, is none.
func message(text string) string {
	for _, verb := range []string{"READY=1", "FDSTORE=1", "FDSTOREREMOVE=1", "BARRIER=1", "EXTEND_TIMEOUT_USEC", "{"} {
		if !strings.HasPrefix(text, verb) {
			continue
		}
		_, name, _ := strings.Cut(text, "FDNAME=")
		if verb == "FDSTORE=1" && (name == "index" || strings.HasPrefix(name, "sessions-") || strings.HasPrefix(name, "s-")) {
			return "" // see the command's comment
		}
		return strings.ReplaceAll(text, "\n", " ")
	}
	return ""
}

// payload returns the beginning of what a message says, given where its header
// is (struct user_msghdr and struct iovec, as words).
func payload(thread int, at uint64) (string, error) {
	header, err := words(thread, at, 4)
	if err != nil {
		return "", err
	}
	vector, err := words(thread, header[2], 2)
	if err != nil {
		return "", err
	}
	text := make([]byte, min(vector[1], 200))
	_, err = unix.PtracePeekData(thread, uintptr(vector[0]), text)
	return strings.TrimSpace(string(text)), err
}

// words reads words of a thread's memory.
func words(thread int, at uint64, n int) ([]uint64, error) {
	list := make([]uint64, n)
	_, err := unix.PtracePeekData(thread, uintptr(at), unsafe.Slice((*byte)(unsafe.Pointer(&list[0])), 8*n))
	return list, err
}

func ptrace(request, thread int, data uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(thread), 0, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
