// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// requestChecks returns the checks of the ioctl format (luo_ioctl and
// luo_session_ioctl). Those of incoming sessions are in After.
func requestChecks() []Check {
	return []Check{
		{Name: "requests on the device have a size", Run: deviceSizes},
		{Name: "requests on an outgoing session have a size", Run: outgoingSizes},
		{Name: "unknown requests are told from misused numbers", Run: unknownRequests},
		{Name: "the reserved word of GET_NAME is zero", Run: reservedWord},
	}
}

// surplus is how much longer than the kernel's the arguments of a program from
// the future are.
const surplus = 24

// sizes checks what f answers to req with arguments of several sizes. fill
// completes an argument, and served tells whether the answer is that of a
// request that passed the check of its size.
func sizes(t T, k session.Kernel, f *fd.FD, req uint, size int, fill func(arg []byte), served func(arg []byte, err error) bool) {
	t.Helper()
	try := func(size int, last byte) ([]byte, error) {
		arg := argument(size)
		fill(arg)
		arg[size-1] |= last
		return arg, k.Ioctl(f, req, arg)
	}
	what := fmt.Sprintf("request %#x", req)
	_, err := try(size-1, 0)
	fails(t, what+" with one byte too few", err, unix.EINVAL)
	_, err = try(size+surplus, 1)
	fails(t, what+" with a surplus that is not zero", err, unix.E2BIG)
	if arg, err := try(size+surplus, 0); !served(arg, err) {
		t.Errorf("%s with a surplus of zeros: %v", what, err)
	}
	if arg, err := try(size, 0); !served(arg, err) {
		t.Errorf("%s with its very size: %v", what, err)
	}
}

func deviceSizes(t T, k session.Kernel) {
	dev := rawDevice(t, k)
	fill := func(arg []byte) { copy(arg[atName:], "conform.sizes1") }
	sizes(t, k, dev, session.ReqCreateSession, sizeNamed, fill, func(arg []byte, err error) bool {
		if err == nil { // the next one may have the name again
			err = unix.Close(int(binary.NativeEndian.Uint32(arg[atFD:])))
		}
		return err == nil
	})
	sizes(t, k, dev, session.ReqRetrieveSession, sizeNamed, fill, func(_ []byte, err error) bool {
		return err == unix.ENOENT
	})
}

func outgoingSizes(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.sizes2")
	token := byte(0)
	fill := func(arg []byte) {
		token++
		arg[atToken] = token
		_ = memfd(t, 0, "x").Do(func(raw int) error {
			binary.NativeEndian.PutUint32(arg[atFD:], uint32(raw))
			return nil
		})
	}
	sizes(t, k, s.FD(), session.ReqPreserveFD, sizeToken, fill, func(_ []byte, err error) bool { return err == nil })
	ignored := func(arg []byte) { copy(arg[atName:], strings.Repeat("y", session.MaxName)) }
	sizes(t, k, s.FD(), session.ReqGetName, sizeNamed, ignored, func(arg []byte, err error) bool {
		name, _ := nameIn(arg)
		return err == nil && name == "conform.sizes2"
	})
}

func unknownRequests(t T, k session.Kernel) {
	dev := rawDevice(t, k)
	arg := argument(sizeNamed)
	copy(arg[atName:], "conform.unknown")
	ok(t, "create", k.Ioctl(dev, session.ReqCreateSession, arg))
	s := own(t, fd.New(int(binary.NativeEndian.Uint32(arg[atFD:]))))
	const otherType, withSize = 0xBB << 8, sizeNamed<<16 | 3<<30
	for _, c := range []struct {
		what string
		f    *fd.FD
		req  uint
		want unix.Errno
	}{
		{"number 2 on the device", dev, 0xBA02, unix.EINVAL},
		{"a session's request on the device", dev, session.ReqGetName, unix.EINVAL},
		{"number 0x44 on a session", s, 0xBA44, unix.EINVAL},
		{"the device's request on a session", s, session.ReqCreateSession, unix.EINVAL},
		{"number 0 of another type on the device", dev, otherType, unix.ENOTTY},
		{"number 0 with direction and size on the device", dev, session.ReqCreateSession | withSize, unix.ENOTTY},
		{"number 0x43 of another type on a session", s, otherType | 0x43, unix.ENOTTY},
		{"number 0x43 with direction and size on a session", s, session.ReqGetName | withSize, unix.ENOTTY},
	} {
		fails(t, c.what, k.Ioctl(c.f, c.req, argument(sizeNamed)), c.want)
	}
}

func reservedWord(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.reserved")
	arg := argument(sizeNamed)
	arg[atFD] = 1
	fails(t, "GET_NAME with a reserved word", k.Ioctl(s.FD(), session.ReqGetName, arg), unix.EINVAL)
}
