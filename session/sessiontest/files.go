// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// inode is what the kernel tells files apart by (memfd_luo_get_id).
type inode struct{ dev, ino uint64 }

// file is one file in a session.
type file struct {
	f       *fd.FD // the preserved open file, or the restored one
	id      inode
	seals   int   // when it was preserved
	counted bool  // id stands in Fake.preserved
	failed  error // what the first retrieve gave
}

// preserveFD is PRESERVE_FD (luo_preserve_file, memfd_luo_preserve).
func (f *Fake) preserveFD(s *luo, arg []byte) error {
	raw := int(int32(binary.NativeEndian.Uint32(arg[atFD:])))
	token := binary.NativeEndian.Uint64(arg[atToken:])
	if err := f.fail(session.ReqPreserveFD, s.name, token); err != nil {
		return err
	}
	if s.files[token] != nil {
		return unix.EEXIST
	}
	if f.MaxFiles > 0 && len(s.files) >= f.MaxFiles {
		return unix.ENOSPC
	}
	if flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0); err != nil || flags&unix.O_PATH != 0 {
		return unix.EBADF
	}
	got, err := look(raw)
	if err != nil {
		return err
	}
	if f.preserved[got.id] {
		return unix.EBUSY
	}
	dup, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	got.f, got.counted = fd.New(dup), true
	s.files[token] = got
	f.preserved[got.id] = true
	return nil
}

// look returns what there is to know about a file, or ENOENT when it is of a
// kind that no handler takes: anything but a shmem file without a link
// (memfd_luo_can_preserve).
func look(raw int) (*file, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(raw, &st); err != nil {
		return nil, err
	}
	if err := unix.Fstatfs(raw, &fs); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 0 || fs.Type != unix.TMPFS_MAGIC {
		return nil, unix.ENOENT
	}
	seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, err
	}
	return &file{id: inode{st.Dev, st.Ino}, seals: seals}, nil
}

// retrieveFD is RETRIEVE_FD (luo_retrieve_file).
func (f *Fake) retrieveFD(s *luo, arg []byte) error {
	token := binary.NativeEndian.Uint64(arg[atToken:])
	file := s.files[token]
	if file == nil {
		return unix.ENOENT
	}
	if file.failed == nil && !file.counted {
		file.failed = f.fail(session.ReqRetrieveFD, s.name, token)
	}
	if file.failed != nil {
		return file.failed
	}
	dup, err := file.f.Dup()
	if err != nil {
		return err
	}
	file.counted = true
	f.preserved[file.id] = true
	binary.NativeEndian.PutUint32(arg[atFD:], uint32(dup.Disown()))
	return nil
}

// successor makes the session that the next kernel has of s.
func (f *Fake) successor(s *luo) (*luo, error) {
	next := &luo{name: s.name, files: map[uint64]*file{}}
	for token, old := range s.files {
		seals := old.seals
		if f.NoSeals {
			seals = unix.F_SEAL_SEAL
		}
		file, err := restore(old, seals)
		if err != nil {
			return next, fmt.Errorf("fake kexec: session %q: restore token %d: %w", s.name, token, err)
		}
		next.files[token] = file
	}
	return next, nil
}

// restore makes the file that the next kernel has of old, with seals (memfd_luo_retrieve).
// As in the kernel it is executable, so that F_SEAL_EXEC brings the seals
// against writing with it.
func restore(old *file, seals int) (*file, error) {
	raw, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := &file{f: fd.New(raw)}
	err = old.f.Do(func(from int) error { return carry(raw, from, seals) })
	st, statErr := file.f.Stat()
	if err := errors.Join(err, statErr); err != nil {
		_ = file.f.Close()
		return nil, err
	}
	file.id = inode{st.Dev, st.Ino}
	return file, nil
}

// carry gives a new memfd the contents and position that from has now, and the
// seals, last of all, as they forbid to write.
func carry(to, from, seals int) error {
	if err := copyContents(to, from); err != nil {
		return err
	}
	pos, err := unix.Seek(from, 0, unix.SEEK_CUR)
	if err != nil {
		return os.NewSyscallError("lseek", err)
	}
	if _, err := unix.Seek(to, pos, unix.SEEK_SET); err != nil {
		return os.NewSyscallError("lseek", err)
	}
	_, err = unix.FcntlInt(uintptr(to), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}

// copyContents copies all bytes without touching the position of from, which
// may have been opened for writing only.
func copyContents(to, from int) error {
	source, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", from))
	if err != nil {
		return err
	}
	defer source.Close()
	buf := make([]byte, 1<<16)
	for off := int64(0); ; {
		n, err := source.ReadAt(buf, off)
		if _, err := unix.Pwrite(to, buf[:n], off); err != nil {
			return os.NewSyscallError("pwrite", err)
		}
		off += int64(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
