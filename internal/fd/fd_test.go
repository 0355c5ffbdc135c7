// SPDX-License-Identifier: Apache-2.0

package fd_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestClosedFDAnswersErrClosedAndClosesTwice(t *testing.T) {
	f := fdtest.Memfd(t)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	if _, err := f.Stat(); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("Stat after Close: %v, want ErrClosed", err)
	}
	if _, err := f.Dup(); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("Dup after Close: %v, want ErrClosed", err)
	}
	var none *fd.FD
	if err := none.Close(); err != nil {
		t.Errorf("Close of nil: %v", err)
	}
}

func TestADescriptorThatIsUsedIsNotClosed(t *testing.T) {
	f := fdtest.Memfd(t)
	err := f.Do(func(raw int) error {
		if err := f.Close(); err != nil {
			return err
		}
		if _, err := f.Stat(); !errors.Is(err, fd.ErrClosed) {
			t.Errorf("Stat after Close: %v, want ErrClosed", err)
		}
		_, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
		return err
	})
	if err != nil {
		t.Errorf("its user finds it closed: %v", err)
	}
	if open := len(fd.Open()); open != 0 {
		t.Errorf("%d descriptors are open when its user has ended", open)
	}
}

func TestDupIsTheSameFileAndItsOwnDescriptor(t *testing.T) {
	f := fdtest.Memfd(t)
	dup, err := f.Dup()
	if err != nil {
		t.Fatal(err)
	}
	want, _ := f.Stat()
	_ = f.Close()
	got, err := dup.Stat()
	if err != nil || got.Ino != want.Ino {
		t.Errorf("Stat of the duplicate: inode %d, %v; want %d", got.Ino, err, want.Ino)
	}
	_ = dup.Do(func(raw int) error {
		if flags, _ := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Error("the duplicate is not close-on-exec")
		}
		return nil
	})
	if link, err := dup.Link(); err != nil || !strings.HasPrefix(link, "/memfd:test") {
		t.Errorf("Link = %q, %v", link, err)
	}
	if err := dup.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenNamesWhoOpenedWhatIsOwned(t *testing.T) {
	f := fdtest.Memfd(t)
	found := false
	for _, stack := range fd.Open() {
		found = found || strings.Contains(stack, "TestOpenNamesWhoOpenedWhatIsOwned")
	}
	if !found {
		t.Error("Open does not name this test")
	}
	before := len(fd.Open())
	raw := f.Disown()
	if open := len(fd.Open()); open != before-1 {
		t.Errorf("%d descriptors are open, %d when one of them was not disowned", open, before)
	}
	_ = unix.Close(raw)
}

// What is closed as garbage stays a leak when its number is used again.
func TestOpenNamesWhoForgotADescriptor(t *testing.T) {
	fd.Track()
	defer fd.Track() // without it
	raw := forget(t)
	for try, closed := 0, false; !closed && try < 1000; try++ {
		runtime.GC()
		_, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
		closed = err != nil
	}
	f := fdtest.Memfd(t)
	if again := number(f); again != raw {
		t.Fatalf("the next descriptor is %d, not %d", again, raw)
	}
	if open := fd.Open(); len(open) != 2 || !strings.Contains(open[1], "forget") {
		t.Errorf("open are %q", open)
	}
	_ = f.Close()
}

// forget is the owner who forgets the descriptor that it returns.
func forget(t *testing.T) int {
	raw, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return number(fd.New(raw))
}

func number(f *fd.FD) (number int) {
	_ = f.Do(func(raw int) error {
		number = raw
		return nil
	})
	return number
}
