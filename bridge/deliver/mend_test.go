// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
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
	raw, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
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

// mended consumes f, as Reseal does.
func mended(t *testing.T, f *fd.FD, e *kho.Entry) (*fd.FD, error) {
	t.Helper()
	f, err := Reseal(t.Context(), f, e)
	if err == nil {
		err = reown(f, e)
	}
	return f, err
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
		"some sealed (before 7.1)":     {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_GROW | unix.F_SEAL_SHRINK}, false},
		"all sealed (before 7.1)":      {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: write | unix.F_SEAL_SEAL}, false},
		"none sealed (before 7.1)":     {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR}, false},
		"not for sealing (before 7.1)": {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_SEAL}, true},
		"noexec sealed (7.2)":          {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_EXEC}, false},
		"noexec, write sealed (7.2)":   {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_RDWR, Seals: write | unix.F_SEAL_EXEC, Mode: unix.S_IFREG | 0o600}, false},
		"noexec sealed (before 7.1)":   {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_EXEC | unix.F_SEAL_SEAL}, false},
		"noexec (before 7.1)":          {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_EXEC, Mode: unix.S_IFREG | 0o600}, false},
		"exec sealed (7.2)":            {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_RDWR, Seals: write | unix.F_SEAL_EXEC, Mode: unix.S_IFREG | 0o777}, true},
		"exec sealed (before 7.1)":     {unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: write | unix.F_SEAL_EXEC, Mode: unix.S_IFREG | 0o777}, false},
		"exec sealed, mode not known":  {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_RDWR, Seals: write | unix.F_SEAL_EXEC}, true},
		"sealed for good by another":   {unix.F_SEAL_GROW | unix.F_SEAL_SEAL, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_GROW}, true},
		"sealed by another unit":       {unix.F_SEAL_GROW | unix.F_SEAL_WRITE, kho.Entry{Flags: unix.O_RDWR, Seals: unix.F_SEAL_GROW}, true},
		"read-only":                    {0, kho.Entry{Flags: unix.O_RDONLY}, true},
		"append, non-blocking":         {0, kho.Entry{Flags: unix.O_RDWR | unix.O_APPEND | unix.O_NONBLOCK}, true},
		"another open file":            {0, kho.Entry{Flags: unix.O_RDWR, Open: 1, Position: 5}, true},
		"another, read-only":           {0, kho.Entry{Flags: unix.O_RDONLY | unix.O_NONBLOCK, Open: 2, Position: 5}, true},
		"write-only, noexec":           {write | unix.F_SEAL_EXEC, kho.Entry{Flags: unix.O_WRONLY, Seals: unix.F_SEAL_EXEC}, false},
	} {
		t.Run(name, func(t *testing.T) {
			test.entry.UID, test.entry.GID = uint32(unix.Geteuid()), uint32(unix.Getegid())
			const contents, position = "contents", 5
			at := int64(position)
			if test.entry.Open > 0 {
				at = 7 // of the open file that was restored
			}
			before := restored(t, contents, at, test.kernel)
			want, _ := before.Stat()
			f, err := mended(t, before, &test.entry)
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
			want.Mode = test.entry.Mode & execute
			if test.entry.Mode == 0 && (test.same || test.entry.Seals&unix.F_SEAL_EXEC == 0) {
				want.Mode = execute
			}
			if st.Mode&execute != want.Mode {
				t.Errorf("mode %#o, of which %#o is to be executable", st.Mode, want.Mode)
			}
			_ = f.Do(func(raw int) error {
				want := int(test.entry.Seals)
				if test.same { // nothing takes a seal away
					want |= test.kernel
				}
				if seals, _ := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); seals != want {
					t.Errorf("seals %#x, want %#x", seals, want)
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

// The kernel restores a file as that of who retrieves it.
func TestAFileGetsItsOwnerAndModeBack(t *testing.T) {
	uid, gid := uint32(unix.Geteuid()), uint32(unix.Getegid())
	const reg, write = unix.S_IFREG, unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE
	otherUID, otherGID := uid, gid
	if uid == 0 { // who else may give files away?
		otherUID, otherGID = 1234, 4321
	}
	for name, test := range map[string]struct {
		is    uint32 // the mode that it has
		seals int    // and the seals
		entry kho.Entry
		want  uint32 // the mode that it gets; the owner is that of the entry, unless that is not known
	}{
		"as new":                {0o777, 0, kho.Entry{Mode: reg | 0o777, UID: uid, GID: gid}, 0o777},
		"private":               {0o777, 0, kho.Entry{Mode: reg | 0o600, UID: otherUID, GID: otherGID}, 0o600},
		"of nobody":             {0o777, 0, kho.Entry{Mode: reg, UID: otherUID, GID: gid}, 0},
		"sealed":                {0o777, write | unix.F_SEAL_SEAL, kho.Entry{Mode: reg | 0o440, UID: uid, GID: otherGID, Seals: write | unix.F_SEAL_SEAL}, 0o440},
		"noexec":                {0o777, write | unix.F_SEAL_EXEC, kho.Entry{Mode: reg | 0o640, UID: otherUID, GID: otherGID, Seals: unix.F_SEAL_EXEC}, 0o640},
		"exec sealed":           {0o777, write | unix.F_SEAL_EXEC, kho.Entry{Mode: reg | 0o755, UID: otherUID, GID: otherGID, Seals: write | unix.F_SEAL_EXEC}, 0o755},
		"partly exec sealed":    {0o777, write | unix.F_SEAL_EXEC, kho.Entry{Mode: reg | 0o700, UID: otherUID, GID: otherGID, Seals: write | unix.F_SEAL_EXEC}, 0o711},
		"not known":             {0o777, 0, kho.Entry{}, 0o777},
		"broken off in between": {0o600, 0, kho.Entry{Mode: reg | 0o600, UID: otherUID, GID: otherGID}, 0o600},
		"another unit's by now": {0o644, 0, kho.Entry{Mode: reg | 0o600, UID: uid, GID: gid}, 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			before := restored(t, "x", 0, 0)
			if err := before.Do(func(raw int) error { return unix.Fchmod(raw, test.is) }); err != nil {
				t.Fatal(err)
			}
			if err := before.Do(func(raw int) error { return addSeals(raw, test.seals) }); err != nil {
				t.Fatal(err)
			}
			f, err := mended(t, before, &test.entry)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			wantUID, wantGID := test.entry.UID, test.entry.GID
			if test.entry.Mode == 0 {
				wantUID, wantGID = uid, gid
			}
			st, err := f.Stat()
			if err != nil || st.Mode != reg|test.want || st.Uid != wantUID || st.Gid != wantGID {
				t.Errorf("mode %#o of %d:%d, %v; want %#o of %d:%d", st.Mode, st.Uid, st.Gid, err, reg|test.want, wantUID, wantGID)
			}
		})
	}
}

// What another unit has made of a file that both have is not undone, whoever has it now.
func TestAFileThatAnotherUnitHasAlreadyIsLeftAsItIs(t *testing.T) {
	first := kho.Entry{Mode: unix.S_IFREG | 0o600, UID: uint32(unix.Geteuid()), GID: uint32(unix.Getegid())}
	made := uint32(0o604)
	if first.UID == 0 { // who else may give files away?
		first.UID, made = 1234, memfdMode
	}
	f, err := mended(t, restored(t, "x", 0, 0), &first)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Do(func(raw int) error { return unix.Fchmod(raw, made) }); err != nil {
		t.Fatal(err)
	}
	f, err = mended(t, f, &first)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode != unix.S_IFREG|made {
		t.Errorf("mode %#o, %v", st.Mode, err)
	}
}

func TestACopyThatIsBrokenOffPasses(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	large := restored(t, "x", 0, 0)
	err := large.Do(func(raw int) error {
		return errors.Join(unix.Ftruncate(raw, copyChunk+1), addSeals(raw, unix.F_SEAL_EXEC))
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Reseal(ctx, large, &kho.Entry{Seals: unix.F_SEAL_EXEC})
	if f != nil || err == nil || !Passing(err) {
		t.Errorf("Reseal: %v; want an error that passes", err)
	}
}

// An fdbridged that is being stopped has time for that.
func TestASmallCopyIsNotBrokenOff(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	f, err := Reseal(ctx, restored(t, "x", 0, unix.F_SEAL_EXEC), &kho.Entry{Seals: unix.F_SEAL_EXEC})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
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
		{fmt.Errorf("copy: %w", context.Canceled), true},
		{fmt.Errorf("copy: %w", context.DeadlineExceeded), true},
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
