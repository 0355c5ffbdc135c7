// SPDX-License-Identifier: Apache-2.0

package bulk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// stream is a connected socket that blocks. PID 1 sends each answer by itself,
// and a thread that waits in read(2) gets at it with one system call, where Go's
// network poller takes three and wakes a second thread besides, on a processor
// that PID 1 may be in need of.
type stream struct{ sock *fd.FD }

// connect connects to the socket at path. A server that accepts nobody makes it
// wait, but not beyond ctx's deadline.
func connect(ctx context.Context, path string) (*stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &stream{fd.New(raw)}
	if deadline, ok := ctx.Deadline(); ok {
		left := unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
		err = os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(raw, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &left))
	}
	if err == nil {
		err = retry(func() error { return unix.Connect(raw, &unix.SockaddrUnix{Name: path}) })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", path, err), s.sock.Close())
	}
	return s, nil
}

// Read implements io.Reader.
func (s *stream) Read(b []byte) (n int, err error) {
	err = s.sock.Do(func(raw int) error {
		return retry(func() (err error) { n, err = unix.Read(raw, b); return err })
	})
	if err == nil && n == 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

// Write implements io.Writer.
func (s *stream) Write(b []byte) (written int, err error) {
	for written < len(b) && err == nil {
		n := 0
		err = s.sock.Do(func(raw int) error {
			return retry(func() (err error) { n, err = unix.Write(raw, b[written:]); return err })
		})
		written += max(n, 0)
	}
	return written, err
}

// end ends all reads and writes, of those that wait, too.
func (s *stream) end() {
	_ = s.sock.Do(func(raw int) error { return unix.Shutdown(raw, unix.SHUT_RDWR) })
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// errEnded is the error of everything after the first failure.
var errEnded = fmt.Errorf("the connection has failed before: %w", net.ErrClosed)
