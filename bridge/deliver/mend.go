// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
)

const (
	// The permissions of a memfd of which nobody has changed them (mm/memfd.c, Linux 7.2): it
	// is executable, unless it was made with MFD_NOEXEC_SEAL.
	memfdMode       = 0o777
	memfdModeNoexec = memfdMode &^ execute
	permissions     = 0o777
	// execute are the permissions that F_SEAL_EXEC is about.
	execute = 0o111
)

// Reseal gives a restored memfd its seals back. Where they cannot be added, or there are too
// many, it is copied into a new one, which takes as long as reading and writing it, until ctx
// ends:
//
//   - Linux before 7.1 restores each with F_SEAL_SEAL alone, which forbids others.
//   - Linux restores each as executable, and from 7.1 on F_SEAL_EXEC brings all the seals
//     against writing with it then (memfd_add_seals in mm/memfd.c). It matters where nobody
//     was to execute the file.
//
// More seals than these are another unit's, which has the file, too. Reseal consumes f; the
// caller owns what is returned, f itself or the new file. Errors are the system's, or that of
// ctx.
func Reseal(ctx context.Context, f *fd.FD, e *kho.Entry) (sealed *fd.FD, err error) {
	sealed = f
	err = f.Do(func(raw int) error {
		got, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // a file that takes no seals
		}
		if err != nil {
			return os.NewSyscallError("fcntl(F_GET_SEALS)", err)
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		has := kho.Seals(got)
		missing, surplus := e.Seals&^has, has&^e.Seals
		noexec := e.Seals&unix.F_SEAL_EXEC != 0 && e.Mode&execute == 0
		if e.Mode == 0 { // an earlier fdbridge has not noted it
			noexec = noexec && (surplus != 0 || missing != 0)
		}
		switch {
		case noexec && st.Mode&execute != 0,
			missing != 0 && has&unix.F_SEAL_SEAL != 0,
			surplus != 0 && has == unix.F_SEAL_SEAL:
			sealed, err = copyOf(ctx, raw, e, noexec)
			return err
		}
		return addSeals(raw, int(missing))
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if sealed != f {
		_ = f.Close() // of a memfd, which has nothing to flush
	}
	return sealed, nil
}

// reown gives a file its owner and its permissions back. The kernel restores it as a new
// memfd of who retrieves it (mm/memfd_luo.c, Linux 7.2), and F_SEAL_EXEC keeps it as
// executable as it is. One that is no such memfd any more is another unit's, too, which has
// got it back before, and may have made of it what it is.
func reown(f *fd.FD, e *kho.Entry) error {
	if e.Mode == 0 { // an earlier fdbridge has not noted it
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	is, want := st.Mode&permissions, e.Mode&permissions
	return f.Do(func(raw int) error {
		if (is^want)&execute != 0 {
			if seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); err == nil && seals&unix.F_SEAL_EXEC != 0 {
				want = want&^execute | is&execute
			}
		}
		restored := is == memfdMode || is == memfdModeNoexec
		if int(st.Uid) != unix.Geteuid() || int(st.Gid) != unix.Getegid() || !restored && is != want {
			return nil
		}
		if is != want {
			if err := unix.Fchmod(raw, want); err != nil {
				return os.NewSyscallError("fchmod", err)
			}
		}
		if st.Uid == e.UID && st.Gid == e.GID {
			return nil
		}
		return os.NewSyscallError("fchown", unix.Fchown(raw, int(e.UID), int(e.GID)))
	})
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
func copyOf(ctx context.Context, raw int, e *kho.Entry, noexec bool) (*fd.FD, error) {
	flags := 0 // vm.memfd_noexec=2 forbids MFD_EXEC
	if noexec {
		flags = unix.MFD_NOEXEC_SEAL
	}
	to, err := unix.MemfdCreate(e.Name[:min(len(e.Name), maxMemfdName)], unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := fd.New(to)
	if err := copyInto(ctx, to, raw); err != nil {
		return nil, errors.Join(fmt.Errorf("copy the file to restore its seals: %w", err), f.Close())
	}
	if err := addSeals(to, int(e.Seals)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// maxMemfdName is the longest name of a memfd in bytes (mm/memfd.c).
const maxMemfdName = 249

// copyChunk is how many bytes are copied before the first look at whether that is to go on.
const copyChunk = 16 << 20

// copyInto copies the contents and the position of a file to an empty one.
func copyInto(ctx context.Context, to, from int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	for offset := int64(0); offset < st.Size; {
		if err := ctx.Err(); err != nil && offset > 0 {
			return err
		}
		n, err := unix.Sendfile(to, from, &offset, int(min(st.Size-offset, copyChunk)))
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
