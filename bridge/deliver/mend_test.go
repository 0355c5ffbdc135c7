// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// restored returns a memfd as a kernel restores it: read-write, without flags,
// with these contents, position and seals.
func restored(t *testing.T, contents string, position int64, seals int) *fd.FD {
	t.Helper()
	raw, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := fd.New(raw)
	_, err = unix.Write(raw, []byte(contents))
	if err == nil {
		_, err = unix.Seek(raw, position, unix.SEEK_SET)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMendMakesAFileWhatItWas(t *testing.T) {
	const write = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE
	for name, test := range map[string]struct {
		kernel int // the seals that the kernel restores
		entry  kho.Entry
		same   bool // no other inode is needed
	}{
		"nothing to mend":              {0, kho.Entry{Flags: unix.O_RDWR}, true},
		"seals that came along":        {unix.F_SEAL_GROW, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_GROW}, true},
		"seals forgotten (before 7.1)": {0, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_GROW | unix.F_SEAL_SHRINK}, true},
		"noexec sealed (7.2)":          {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_EXEC}, false},
		"noexec sealed (before 7.1)":   {0, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_EXEC | unix.F_SEAL_SEAL}, false},
		"read-only":                    {0, kho.Entry{Flags: unix.O_RDONLY}, true},
		"append, non-blocking":         {0, kho.Entry{Flags: unix.O_RDWR | unix.O_APPEND | unix.O_NONBLOCK}, true},
		"another open file":            {0, kho.Entry{Flags: unix.O_RDWR, Open: 1, Position: 5}, true},
		"another, read-only":           {0, kho.Entry{Flags: unix.O_RDONLY | unix.O_NONBLOCK, Open: 2, Position: 5}, true},
		"write-only, noexec":           {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_WRONLY, Seals: unix.F_SEAL_EXEC}, false},
	} {
		t.Run(name, func(t *testing.T) {
			const contents, position = "contents", 5
			at := int64(position)
			if test.entry.Open > 0 {
				at = 7 // of the open file that was restored
			}
			before := restored(t, contents, at, test.kernel)
			want, _ := before.Stat()
			f, err := Reseal(before, &test.entry)
			if err == nil {
				f, err = reopen(f, &test.entry)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil || (st.Ino == want.Ino) != test.same || st.Size != int64(len(contents)) {
				t.Errorf("size %d, same inode %v, %v; want size %d, %v", st.Size, st.Ino == want.Ino, err, len(contents), test.same)
			}
			if test.entry.Seals&unix.F_SEAL_EXEC != 0 && st.Mode&0o111 != 0 {
				t.Errorf("mode %#o is executable", st.Mode)
			}
			_ = f.Do(func(raw int) error {
				if seals, _ := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); seals != int(test.entry.Seals) {
					t.Errorf("seals %#x, want %#x", seals, test.entry.Seals)
				}
				flags, _ := unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0)
				if flags&(unix.O_ACCMODE|statusFlags) != int(test.entry.Flags) {
					t.Errorf("flags %#o, want %#o", flags, test.entry.Flags)
				}
				if got, _ := unix.Seek(raw, 0, unix.SEEK_CUR); got != position {
					t.Errorf("position %d, want %d", got, position)
				}
				if test.entry.Flags&unix.O_ACCMODE == unix.O_WRONLY {
					return nil
				}
				buffer := make([]byte, 100)
				if n, err := unix.Pread(raw, buffer, 0); string(buffer[:max(n, 0)]) != contents {
					t.Errorf("contents %q, %v", buffer[:max(n, 0)], err)
				}
				return nil
			})
		})
	}
}

func TestOnlyWhatMayComeRightLaterPasses(t *testing.T) {
	kernel := func(err error) error { return &session.Error{Op: "retrieve fd", Err: err} }
	for _, test := range []struct {
		err  error
		want bool
	}{
		{os.NewSyscallError("memfd_create", unix.ENOMEM), true},
		{os.NewSyscallError("memfd_create", unix.EMFILE), true},
		{fmt.Errorf("copy: %w", unix.ENOSPC), true},
		{unix.EINTR, true},
		{unix.EPERM, false},
		{kernel(unix.EMFILE), true}, // before the kernel has tried
		{kernel(unix.ENFILE), true},
		{kernel(unix.ENOMEM), false}, // stays so
		{kernel(unix.EINTR), false},
		{kernel(unix.EIO), false},
		{session.ErrNoToken, false},
	} {
		if got := Passing(test.err); got != test.want {
			t.Errorf("Passing(%v) = %v, want %v", test.err, got, test.want)
		}
	}
}
