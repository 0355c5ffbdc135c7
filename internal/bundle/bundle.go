// SPDX-License-Identifier: Apache-2.0

// Package bundle keeps many descriptors behind a single one.
//
// That one is a socket. The others are in its queue, one message for each, which are
// only ever looked at and never taken out: they stay open as long as the socket
// does, whoever has it. So a process can entrust another with a thousand descriptors by
// passing one, and find them behind it again when it has been killed meanwhile.
//
// What is in a queue counts for the user who has put it there: see Add.
package bundle

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

var (
	// ErrFull says that there is no room for a further descriptor. There is for some
	// 270 under Linux's standard net.core.wmem_default, to which each message is
	// charged with what the kernel needs for it.
	ErrFull = errors.New("the bundle is full")
	// ErrMessage says that there is something in the queue that Add does not send, or
	// a descriptor that this process has no room for.
	ErrMessage = errors.New("not the message of one descriptor")
)

// maxName is the most bytes that a name may have.
const maxName = 255

// Bundle is a bundle that can still be added to.
type Bundle struct{ queue, way *fd.FD }

// New makes an empty bundle. The caller closes it.
func New() (*Bundle, error) {
	// As the two are connected to each other, the number of messages is not limited
	// (unix_dgram_sendmsg in net/unix/af_unix.c, Linux 6.19); and other than with
	// SOCK_SEQPACKET, the one is as it was when the other is closed.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a bundle: %w", os.NewSyscallError("socketpair", err))
	}
	return &Bundle{queue: fd.New(pair[0]), way: fd.New(pair[1])}, nil
}

// FD returns the descriptor that all that is added is behind, be it passed on before or
// after that. The Bundle owns it.
func (b *Bundle) FD() *fd.FD { return b.queue }

// Add adds a duplicate of f, which stays the caller's, under a name of 1 to 255 bytes.
// Errors: ErrFull, or what sendmsg(2) says.
//
// As long as there are more descriptors of a user in queues of sockets than a process
// of that user may have open (RLIMIT_NOFILE), this process can pass none to another, with
// ETOOMANYREFS, unless it has CAP_SYS_ADMIN or CAP_SYS_RESOURCE (too_many_unix_fds in
// net/core/scm.c, Linux 6.18). So there should not be many hundreds in bundles.
func (b *Bundle) Add(name string, f *fd.FD) error {
	if len(name) == 0 || len(name) > maxName {
		return fmt.Errorf("add a descriptor to a bundle: its name has %d bytes", len(name))
	}
	err := f.Do(func(added int) error {
		return b.way.Do(func(raw int) error {
			return unix.Sendmsg(raw, []byte(name), unix.UnixRights(added), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
	})
	if errors.Is(err, unix.EAGAIN) {
		err = ErrFull
	}
	if err != nil {
		return fmt.Errorf("add %s to a bundle: %w", name, err)
	}
	return nil
}

// Close closes the Bundle's own descriptors. What is behind FD stays as it is for who
// else has that.
func (b *Bundle) Close() error {
	if b == nil {
		return nil
	}
	return errors.Join(b.queue.Close(), b.way.Close())
}

// Named is a descriptor and the name that it was added under.
type Named struct {
	Name string
	FD   *fd.FD
}

// Open returns duplicates of all descriptors behind f, which was a Bundle's, in the
// order in which they were added; the caller owns them. The bundle stays as it is. Where
// the next message is looked at is the socket's, so that only one Open of a bundle may be
// under way on the machine. With an error, which may be ErrMessage, there may be more.
func Open(f *fd.FD) (list []Named, err error) {
	err = f.Do(func(raw int) error {
		// From where the next message is looked at; the kernel moves it on (socket(7)).
		if err := unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
			return os.NewSyscallError("setsockopt(SO_PEEK_OFF)", err)
		}
		for {
			named, err := peek(raw)
			if errors.Is(err, unix.EAGAIN) {
				return nil
			}
			if err != nil {
				return err
			}
			list = append(list, named)
		}
	})
	if err != nil {
		err = fmt.Errorf("open a bundle: %w", err)
	}
	return list, err
}

// peek looks at the next message.
func peek(raw int) (Named, error) {
	name := make([]byte, maxName)
	rights := fd.RoomForOne()
	n, rightsn, flags, _, err := unix.Recvmsg(raw, name, rights, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return Named{}, os.NewSyscallError("recvmsg", err)
	}
	f, err := fd.Received(rights[:rightsn])
	if err == nil && (f == nil || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = ErrMessage
	}
	if err != nil {
		_ = f.Close()
		return Named{}, err
	}
	return Named{string(name[:n]), f}, nil
}
