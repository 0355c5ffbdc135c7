// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"unsafe"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Path is where the kernel's live-update device is found.
const Path = "/dev/liveupdate"

// MaxName is the longest name of a session in bytes: the kernel's
// LIVEUPDATE_SESSION_NAME_LENGTH without the terminating NUL.
const MaxName = nameSize - 1

const (
	nameSize = 64        // LIVEUPDATE_SESSION_NAME_LENGTH
	ioctlNo  = 0xBA << 8 // LIVEUPDATE_IOCTL_TYPE
)

// The ioctl requests, _IO(0xBA, nr), as a Kernel sees them. Kexec handover
// exists on x86-64 and arm64 alone, where _IO adds no bits for a direction.
const (
	ReqCreateSession   uint = ioctlNo | 0x00 // on the device
	ReqRetrieveSession uint = ioctlNo | 0x01 // on the device
	ReqPreserveFD      uint = ioctlNo | 0x40 // on an outgoing session
	ReqRetrieveFD      uint = ioctlNo | 0x41 // on an incoming session
	ReqFinish          uint = ioctlNo | 0x42 // on an incoming session
	ReqGetName         uint = ioctlNo | 0x43 // on any session, Linux 7.2 and later
)

// Each argument starts with its own size, so that kernel and program can
// grow it independently. The kernel writes its answer into the same bytes.

// namedSession is struct liveupdate_ioctl_create_session and its twin
// liveupdate_ioctl_retrieve_session: name in, fd out.
type namedSession struct {
	size uint32
	fd   int32
	name [nameSize]byte
}

// fileByToken is struct liveupdate_session_preserve_fd, fd in, and its twin
// liveupdate_session_retrieve_fd, fd out.
type fileByToken struct {
	size  uint32
	fd    int32
	token uint64
}

// finish is struct liveupdate_session_finish.
type finish struct {
	size     uint32
	reserved uint32
}

// getName is struct liveupdate_session_get_name: name out.
type getName struct {
	size     uint32
	reserved uint32
	name     [nameSize]byte
}

// call makes one ioctl with arg, whose first field is its size.
func call[T namedSession | fileByToken | finish | getName](k Kernel, f *fd.FD, req uint, arg *T) error {
	size := unsafe.Sizeof(*arg)
	*(*uint32)(unsafe.Pointer(arg)) = uint32(size)
	return k.Ioctl(f, req, unsafe.Slice((*byte)(unsafe.Pointer(arg)), size))
}

// cString returns what stands before the first NUL.
func cString(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}
