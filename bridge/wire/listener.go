// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// Path is where fdbridged listens for root.
	Path = "/run/fdbridge/socket"
	// SessionsPath is where it listens for services, whatever their users. It is
	// another socket, so that they cannot be in the way of what is asked there.
	SessionsPath = "/run/fdbridge/sessions"
)

// backlog is how many connections may wait to be accepted: more units than
// start at one time.
const backlog = 4096

// Listener is a listening socket.
type Listener struct {
	conn   *Conn
	path   string
	closed atomic.Bool
}

// Listen makes a listening socket at path, with access for its owner alone,
// and replaces one that a process has left there.
func Listen(path string) (*Listener, error) { return listen(path, 0o600) }

// ListenToAll is Listen with access for everybody.
func ListenToAll(path string) (*Listener, error) { return listen(path, 0o666) }

func listen(path string, mode uint32) (*Listener, error) {
	raw, err := socket()
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	err = refuseFDs(raw)
	if err == nil { // before bind it sets the mode that the new file gets, less the umask
		err = unix.Fchmod(raw, mode)
	}
	if err == nil {
		if err = unix.Unlink(path); errors.Is(err, unix.ENOENT) {
			err = nil
		}
	}
	if err == nil {
		err = unix.Bind(raw, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Chmod(path, mode)
	}
	if err == nil {
		err = unix.Listen(raw, backlog)
	}
	if err != nil {
		_ = unix.Close(raw)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	conn, err := newConn(raw)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &Listener{conn: conn, path: path}, nil
}

// refuseFDs has the kernel refuse fds beside what is sent to a socket and to those
// that it accepts: no request has any, and closing one of a file system that does not
// answer takes as long as whoever has sent it likes (Linux 6.16, net/unix/af_unix.c).
func refuseFDs(raw int) error {
	err := unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
	if errors.Is(err, unix.ENOPROTOOPT) { // an earlier kernel, which has no live update either
		return nil
	}
	return os.NewSyscallError("setsockopt(SO_PASSRIGHTS)", err)
}

// Accept waits for the next connection, which the caller closes. It ends with
// an error that answers errors.Is for os.ErrClosed after Close.
func (l *Listener) Accept() (*Conn, error) {
	var n int
	var result error
	err := l.conn.raw.Read(func(raw uintptr) bool {
		for {
			n, _, result = unix.Accept4(int(raw), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if !errors.Is(result, unix.EINTR) && !errors.Is(result, unix.ECONNABORTED) {
				return !errors.Is(result, unix.EAGAIN)
			}
		}
	})
	if err != nil && l.closed.Load() { // what it is then is the poller's own secret
		err = os.ErrClosed
	}
	if err == nil {
		err = os.NewSyscallError("accept", result)
	}
	if err != nil {
		return nil, fmt.Errorf("accept a connection: %w", err)
	}
	return newConn(n)
}

// Remove removes the socket's file, so that who comes next can tell a fdbridged
// that was stopped from one that crashed: see Patience.
func (l *Listener) Remove() error {
	if err := unix.Unlink(l.path); err != nil {
		return &os.PathError{Op: "unlink", Path: l.path, Err: err}
	}
	return nil
}

// Close stops listening. The socket's file stays unless it was removed; the next
// Listen replaces it.
func (l *Listener) Close() error {
	l.closed.Store(true)
	return l.conn.Close()
}
