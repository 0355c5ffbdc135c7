// SPDX-License-Identifier: Apache-2.0

// Package wire is fdbridge's local socket: a SOCK_SEQPACKET connection on
// which each packet is one JSON object, with at most one fd beside it.
//
// A peer is known by its pidfd, which the kernel gives and which cannot be
// reused, and by nothing that it says. What the packets mean to a unit's
// sessions is decided in package bridge, not here. Who speaks this protocol in
// another language believes the end of a connection when it has been read twice:
// see Receive.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// MaxPacket is the most bytes that a packet may have.
const MaxPacket = 64 << 10

var (
	// ErrPacket says that the peer sent something that is no packet of this
	// protocol: too long, no JSON object, or with more than one fd.
	ErrPacket = errors.New("malformed packet")
	// ErrNoPeer says that the kernel cannot name the peer's process: it is
	// gone, or the kernel is older than Linux 6.5 (SO_PEERPIDFD).
	ErrNoPeer = errors.New("the process at the other end cannot be identified")
)

// Conn is one connection. One goroutine at a time may send on it, and one receive.
type Conn struct {
	file *os.File // non-blocking, so that the runtime's poller serves deadlines
	raw  syscall.RawConn
}

func newConn(raw int) (*Conn, error) {
	file := os.NewFile(uintptr(raw), "fdbridge socket")
	rc, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Conn{file: file, raw: rc}, nil
}

func socket() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// Dial connects to the socket at path. It does not wait: a socket that is not
// there gives ENOENT, one without a listener ECONNREFUSED, one whose queue is
// full EAGAIN. The caller closes the Conn.
func Dial(path string) (*Conn, error) {
	raw, err := socket()
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	if err := unix.Connect(raw, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(raw)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return newConn(raw)
}

// Close closes the connection; a Send or Receive under way ends.
func (c *Conn) Close() error { return c.file.Close() }

// CloseReceive ends a Receive that waits and all later ones: the peer has nothing more to
// say. Unlike a deadline nothing takes it back.
func (c *Conn) CloseReceive() error {
	var result error
	err := c.raw.Control(func(raw uintptr) { result = unix.Shutdown(int(raw), unix.SHUT_RD) })
	return errors.Join(err, os.NewSyscallError("shutdown", result))
}

// SetDeadline bounds every later Send and Receive; after it they return an
// error that answers errors.Is for os.ErrDeadlineExceeded.
func (c *Conn) SetDeadline(t time.Time) error { return c.file.SetDeadline(t) }

// SetSendDeadline is SetDeadline for Send alone.
func (c *Conn) SetSendDeadline(t time.Time) error { return c.file.SetWriteDeadline(t) }

// Send sends v as one packet, with f beside it if that is not nil. The caller
// keeps f.
func (c *Conn) Send(v any, f *fd.FD) error {
	data, err := json.Marshal(v)
	if err == nil && len(data) > MaxPacket {
		err = fmt.Errorf("%w: %d bytes", ErrPacket, len(data))
	}
	if err != nil {
		return fmt.Errorf("send a packet: %w", err)
	}
	if f == nil {
		err = c.sendmsg(data, nil)
	} else {
		err = f.Do(func(carried int) error { return c.sendmsg(data, unix.UnixRights(carried)) })
	}
	if err != nil {
		return fmt.Errorf("send a packet: %w", err)
	}
	return nil
}

func (c *Conn) sendmsg(data, oob []byte) error {
	var result error
	err := c.raw.Write(func(raw uintptr) bool {
		for {
			result = unix.Sendmsg(int(raw), data, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if !errors.Is(result, unix.EINTR) {
				return !errors.Is(result, unix.EAGAIN)
			}
		}
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", result)
}

// Receive takes one packet into v and returns the fd beside it, which the
// caller owns; nil when there is none. It returns io.EOF when the peer has
// closed the connection, and ErrPacket, with no fd, for a malformed packet. An empty
// packet is passed over, or taken for the end.
func (c *Conn) Receive(v any) (*fd.FD, error) {
	data := make([]byte, MaxPacket)
	oob := fd.RoomForOne()
	n, oobn, flags, err := c.recvmsg(data, oob)
	if err == nil && n == 0 && oobn == 0 {
		// The kernel looks for a packet first, and then whether the peer has hung up: one
		// that was sent in between, before the peer did so, is there the second time
		// (__unix_dgram_recvmsg in net/unix/af_unix.c, Linux 7.2).
		n, oobn, flags, err = c.recvmsg(data, oob)
	}
	if err != nil {
		return nil, fmt.Errorf("receive a packet: %w", err)
	}
	if n == 0 && oobn == 0 {
		return nil, io.EOF
	}
	f, err := fd.Received(oob[:oobn])
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrPacket, err)
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("%w: more than %d bytes or more than one fd", ErrPacket, MaxPacket)
	}
	if err == nil {
		if jsonErr := json.Unmarshal(data[:n], v); jsonErr != nil {
			err = fmt.Errorf("%w: %w", ErrPacket, jsonErr)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("receive a packet: %w", err)
	}
	return f, nil
}

func (c *Conn) recvmsg(data, oob []byte) (n, oobn, flags int, err error) {
	var result error
	err = c.raw.Read(func(raw uintptr) bool {
		for {
			n, oobn, flags, _, result = unix.Recvmsg(int(raw), data, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if !errors.Is(result, unix.EINTR) {
				return !errors.Is(result, unix.EAGAIN)
			}
		}
	})
	if err == nil {
		err = os.NewSyscallError("recvmsg", result)
	}
	return n, oobn, flags, err
}

// Peer returns a pidfd of the process that connected (SO_PEERPIDFD, Linux 6.5),
// which the caller owns, or ErrNoPeer.
func (c *Conn) Peer() (*fd.FD, error) {
	var peer *fd.FD
	var result error
	err := c.raw.Control(func(raw uintptr) {
		var pidfd int
		if pidfd, result = unix.GetsockoptInt(int(raw), unix.SOL_SOCKET, unix.SO_PEERPIDFD); result == nil {
			peer = fd.New(pidfd)
		}
	})
	if err == nil {
		err = result
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoPeer, err)
	}
	return peer, nil
}
