// SPDX-License-Identifier: Apache-2.0

package session

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Kernel is the seam at the kernel's boundary: System is the real one, package
// sessiontest has a fake. Errors that the kernel gave are a bare unix.Errno.
type Kernel interface {
	// Open opens the device at path for reading and writing, close-on-exec.
	// The caller owns the descriptor.
	Open(path string) (*fd.FD, error)
	// Ioctl makes the request on f with arg, which the kernel reads and
	// writes. A descriptor that the kernel puts into arg is close-on-exec
	// and the caller's.
	Ioctl(f *fd.FD, req uint, arg []byte) error
}

// System is the running kernel.
type System struct{}

// Open does open(2).
func (System) Open(path string) (*fd.FD, error) {
	var raw int
	err := uninterrupted(func() (err error) {
		raw, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return fd.New(raw), nil
}

// Ioctl does ioctl(2). It returns fd.ErrClosed when f is closed.
func (System) Ioctl(f *fd.FD, req uint, arg []byte) error {
	return f.Do(func(raw int) error {
		return uninterrupted(func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(raw), uintptr(req),
				uintptr(unsafe.Pointer(unsafe.SliceData(arg))))
			if errno != 0 {
				return errno
			}
			return nil
		})
	})
}

// maxInterrupts bounds how often an interrupted system call is made again. The
// kernel answers a failed RETRIEVE_FD with the same error for ever (luo_file.c,
// luo_retrieve_file), so EINTR there need not ever end.
const maxInterrupts = 100

// uninterrupted calls fn until it returns something other than EINTR, or
// maxInterrupts times.
func uninterrupted(fn func() error) error {
	err := fn()
	for n := 1; err == unix.EINTR && n < maxInterrupts; n++ {
		err = fn()
	}
	return err
}
