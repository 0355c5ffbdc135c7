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

// Reseal gives a restored memfd its seals back. Linux before 7.1 forgets them
// all, and they are added again. Linux 7.1 and 7.2 restore every memfd as
// executable, and then the seal against that, F_SEAL_EXEC, brings all the seals
// against writing with it (memfd_add_seals in mm/memfd.c): such a file is copied
// into a new one. It consumes f; the caller owns what is returned, f itself or
// the new file. Errors are the system's.
func Reseal(f *fd.FD, e *kho.Entry) (sealed *fd.FD, err error) {
	sealed = f
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
		sealed, err = copyOf(raw, e)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if sealed != f {
		err = f.Close()
	}
	return sealed, err
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

// reopen makes a restored file the open file that the entry is: the kernel
// restores one open file of each, read-write and without flags (mm/memfd_luo.c,
// Linux 7.2). Another one of the same file, or one that was not read-write, is
// opened anew. It consumes f; the caller owns what is returned.
func reopen(f *fd.FD, e *kho.Entry) (again *fd.FD, err error) {
	flags := int(e.Flags) & statusFlags
	mode := int(e.Flags) & unix.O_ACCMODE
	again = f
	err = f.Do(func(raw int) error {
		switch {
		case e.Open > 0:
			again, err = openAgain(raw, mode|flags, e.Position)
		case mode != unix.O_RDWR:
			position, seekErr := unix.Seek(raw, 0, unix.SEEK_CUR)
			if seekErr != nil {
				return os.NewSyscallError("lseek", seekErr)
			}
			again, err = openAgain(raw, mode|flags, position)
		case flags != 0:
			_, err = unix.FcntlInt(uintptr(raw), unix.F_SETFL, flags)
			err = os.NewSyscallError("fcntl(F_SETFL)", err)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if again != f {
		err = f.Close()
	}
	return again, err
}

// openAgain opens the file behind raw anew.
func openAgain(raw, flags int, position int64) (*fd.FD, error) {
	opened, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the file again with flags %#o: %w", flags, err)
	}
	f := fd.New(opened)
	if _, err := unix.Seek(opened, position, unix.SEEK_SET); err != nil {
		return nil, errors.Join(os.NewSyscallError("lseek", err), f.Close())
	}
	return f, nil
}
