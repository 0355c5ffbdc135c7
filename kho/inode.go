// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Inode is what a kernel looks at to decide whether it can preserve a file, and
// what that takes.
type Inode struct {
	Mode  uint32 // st_mode
	Links uint64 // st_nlink
	FS    int64  // f_type of fstatfs(2), 0 when it is not known
	// Size is the length, Allocated what of it has memory; in bytes.
	Size, Allocated int64
}

// InodeOf returns the inode of an open file, which stays the caller's.
func InodeOf(f *fd.FD) (Inode, error) {
	st, err := f.Stat()
	if err != nil {
		return Inode{}, err
	}
	var fs unix.Statfs_t
	err = f.Do(func(raw int) error { return os.NewSyscallError("fstatfs", unix.Fstatfs(raw, &fs)) })
	if err != nil {
		return Inode{}, err
	}
	return Inode{
		Mode: st.Mode, Links: uint64(st.Nlink), FS: int64(fs.Type),
		Size: st.Size, Allocated: st.Blocks * 512,
	}, nil
}

// Carried tells whether the kernel preserves such files: those of tmpfs without
// a link, which memfds are (memfd_luo_can_preserve in mm/memfd_luo.c, Linux 6.19
// to 7.3).
func (i Inode) Carried() bool {
	return i.Mode&unix.S_IFMT == unix.S_IFREG && i.FS == unix.TMPFS_MAGIC && i.Links == 0
}
