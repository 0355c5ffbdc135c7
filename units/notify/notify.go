// SPDX-License-Identifier: Apache-2.0

// Package notify speaks systemd's notify protocol, sd_notify(3), with what an
// fd store needs: fds and their names, removal, and the barrier; and takes in
// the fds that the service manager hands to a process, sd_listen_fds(3).
//
// It is small on purpose: it goes into programs that run before each start of
// a service.
package notify

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Patience is how long a service whose start or work is at stake waits for the service
// manager. While it starts 1,000 units on two slow processors, it has been seen to read
// no message for 127 s. It looks at no timeout meanwhile either.
const Patience = 10 * time.Minute

var (
	// ErrNoSocket says that the process was not given a notify socket.
	ErrNoSocket = errors.New("no notify socket: NOTIFY_SOCKET is not set, so the service manager did not start this process or the unit has NotifyAccess=none")
	// ErrName says that a name is none that systemd stores an fd under.
	ErrName = errors.New("not a name for a stored fd: systemd takes up to 255 printable ASCII characters other than a colon")
	// ErrBarrier says that the service manager did not get to the barrier in
	// time.
	ErrBarrier = errors.New("the service manager did not read its messages")
)

// Socket sends messages to the service manager.
type Socket struct {
	sock *fd.FD
	wait time.Duration
}

// Open connects to the notify socket at addr, the value of $NOTIFY_SOCKET: a
// path, or a name in the abstract name space after an '@'. A message waits for room in
// the service manager's queue as long as wait, after which it fails with EAGAIN. Open
// returns ErrNoSocket for an empty addr. The caller closes the Socket.
func Open(addr string, wait time.Duration) (*Socket, error) {
	if addr == "" {
		return nil, ErrNoSocket
	}
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a notify socket: %w", err)
	}
	s := &Socket{sock: fd.New(raw), wait: wait}
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	err = unix.SetsockoptTimeval(raw, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	if err == nil {
		err = unix.Connect(raw, &unix.SockaddrUnix{Name: addr})
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("connect to the notify socket %s: %w", addr, err)
	}
	return s, nil
}

// Close closes the socket. The service manager looks at the sender's process when it
// reads a message, so a process that ends right after its last one calls Barrier
// first.
func (s *Socket) Close() error { return s.sock.Close() }

// Ready says that the service has started, with a status line for people.
func (s *Socket) Ready(status string) error {
	return s.send("READY=1\nSTATUS="+oneLine(status), nil, 0)
}

// Status tells people what the service is about.
func (s *Socket) Status(status string) error { return s.send("STATUS="+oneLine(status), nil, 0) }

// ExtendTimeout asks the service manager to wait for this long from now on, in
// place of TimeoutStartSec= while the unit starts. It never shortens the wait.
func (s *Socket) ExtendTimeout(wait time.Duration) error {
	return s.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", wait.Microseconds()), nil, 0)
}

// Store puts a duplicate of f into the unit's fd store, in front of what is
// there, whatever f polls (FDPOLL=0). The caller keeps f. It returns ErrName
// for a name that systemd would ignore (fdname_is_valid in
// src/basic/fd-util.c). That the store had room is not known from the answer:
// systemd drops what is over FileDescriptorStoreMax= with a log message.
func (s *Socket) Store(name string, f *fd.FD) error {
	if !ValidName(name) {
		return fmt.Errorf("store an fd as %q: %w", name, ErrName)
	}
	return s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, f, 0)
}

// StoreUnnamed is Store without a name; the service manager calls the fd
// "stored".
func (s *Socket) StoreUnnamed(f *fd.FD) error { return s.send("FDSTORE=1\nFDPOLL=0", f, 0) }

// Remove takes all fds of that name out of the unit's fd store.
func (s *Socket) Remove(name string) error { return s.remove(name, 0) }

func (s *Socket) remove(name string, flags int) error {
	if !ValidName(name) {
		return fmt.Errorf("remove the fd %q: %w", name, ErrName)
	}
	return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil, flags)
}

// Flush is that of Backlog: nothing waits in this process.
func (s *Socket) Flush() error { return nil }

// Barrier returns when the service manager has read all messages sent before,
// or ErrBarrier when it takes longer than a message may wait.
func (s *Socket) Barrier() error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("make the pipe for a barrier: %w", err)
	}
	read, write := fd.New(pipe[0]), fd.New(pipe[1])
	defer read.Close()
	err := s.send("BARRIER=1", write, 0)
	_ = write.Close()
	if err != nil {
		return err
	}
	return read.Do(func(raw int) error { return waitHangup(raw, s.wait) })
}

// waitHangup waits until the other end of a pipe is closed, as long as wait.
func waitHangup(raw int, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(raw)}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for a barrier: %w", err)
		case n == 0:
			return fmt.Errorf("%w within %v", ErrBarrier, wait)
		default:
			return nil
		}
	}
}

// send sends one message, with a descriptor if f is not nil, and with flags of sendmsg(2).
func (s *Socket) send(message string, f *fd.FD, flags int) error {
	err := s.sock.Do(func(raw int) error {
		if f == nil {
			return sendmsg(raw, message, nil, flags)
		}
		return f.Do(func(carried int) error { return sendmsg(raw, message, unix.UnixRights(carried), flags) })
	})
	if err != nil {
		what, _, _ := strings.Cut(message, "\n")
		return fmt.Errorf("send %s to the service manager: %w", what, err)
	}
	return nil
}

func sendmsg(raw int, message string, oob []byte, flags int) error {
	for {
		err := unix.Sendmsg(raw, []byte(message), oob, nil, unix.MSG_NOSIGNAL|flags)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// ValidName tells whether systemd stores an fd under name; the empty name is
// valid.
func ValidName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || c == ':' {
			return false
		}
	}
	return len(name) <= 255
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", " ") }
