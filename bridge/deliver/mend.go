// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
)

// mend makes a restored file what it was before the live update, where the
// kernel has not: its seals, its access mode and its flags. It consumes f; the
// caller owns what is returned.
func mend(f *fd.FD, e *kho.Entry) (*fd.FD, error) {
	for _, step := range []func(*fd.FD, *kho.Entry) (*fd.FD, error){reseal, reopen} {
		mended, err := step(f, e)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if mended != nil {
			_ = f.Close() // a memfd has nothing to flush
			f = mended
		}
	}
	return f, nil
}

// reseal gives a memfd its seals back. Linux before 7.1 forgets them all, and
// they are added again. Linux 7.1 and 7.2 restore every memfd as executable,
// and then the seal against that, F_SEAL_EXEC, brings all the seals against
// writing with it (memfd_add_seals in mm/memfd.c): such a file is copied into
// a new one, which is returned; nil if f itself is as it was.
func reseal(f *fd.FD, e *kho.Entry) (copied *fd.FD, err error) {
	err = f.Do(func(raw int) error {
		has, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // a file that takes no seals
		}
		if err != nil {
			return os.NewSyscallError("fcntl(F_GET_SEALS)", err)
		}
		missing, surplus := int(e.Seals)&^has, has&^int(e.Seals)
		if surplus == 0 && missing&unix.F_SEAL_EXEC == 0 {
			return addSeals(raw, missing)
		}
		copied, err = copyOf(raw, e)
		return err
	})
	return copied, err
}

func addSeals(raw, seals int) error {
	if seals == 0 {
		return nil
	}
	_, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}

// copyOf returns a new memfd with the contents and the position of raw and the
// entry's seals.
func copyOf(raw int, e *kho.Entry) (*fd.FD, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if e.Seals&unix.F_SEAL_EXEC != 0 {
		flags |= unix.MFD_NOEXEC_SEAL
	}
	to, err := unix.MemfdCreate(e.Name[:min(len(e.Name), maxMemfdName)], flags)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := fd.New(to)
	if err := copyInto(to, raw); err != nil {
		return nil, errors.Join(fmt.Errorf("copy the file to restore its seals: %w", err), f.Close())
	}
	if err := addSeals(to, int(e.Seals)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// maxMemfdName is the longest name of a memfd in bytes (mm/memfd.c).
const maxMemfdName = 249

// copyInto copies the contents and the position of a file to an empty one.
func copyInto(to, from int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	for offset := int64(0); offset < st.Size; {
		n, err := unix.Sendfile(to, from, &offset, int(min(st.Size-offset, 1<<30)))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return os.NewSyscallError("sendfile", err)
		}
	}
	position, err := unix.Seek(from, 0, unix.SEEK_CUR)
	if err == nil {
		_, err = unix.Seek(to, position, unix.SEEK_SET)
	}
	return os.NewSyscallError("lseek", err)
}

// statusFlags are the flags of an open file that fcntl(F_SETFL) can change.
const statusFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_NOATIME | unix.O_DIRECT

// reopen gives an open file its flags and its access mode back: the kernel
// restores every memfd read-write and without flags (mm/memfd_luo.c, Linux
// 7.2). One that was not read-write is opened again, at the same position, and
// returned; nil if f itself is as it was.
func reopen(f *fd.FD, e *kho.Entry) (again *fd.FD, err error) {
	flags := int(e.Flags) & statusFlags
	mode := int(e.Flags) & unix.O_ACCMODE
	err = f.Do(func(raw int) error {
		if mode == unix.O_RDWR {
			if flags == 0 {
				return nil
			}
			_, err := unix.FcntlInt(uintptr(raw), unix.F_SETFL, flags)
			return os.NewSyscallError("fcntl(F_SETFL)", err)
		}
		position, err := unix.Seek(raw, 0, unix.SEEK_CUR)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		opened, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), mode|flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the file again with flags %#o: %w", mode|flags, err)
		}
		again = fd.New(opened)
		_, err = unix.Seek(opened, position, unix.SEEK_SET)
		return os.NewSyscallError("lseek", err)
	})
	if err != nil {
		_ = again.Close()
		return nil, err
	}
	return again, nil
}
