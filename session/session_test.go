// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/session/sessiontest"
)

// What the kernel answers is the conformance suite's, in sessiontest.

func TestBadNamesAreRefusedBeforeTheKernelIsAsked(t *testing.T) {
	f := newFake(t)
	f.Fail = func(req uint, name string, _ uint64) error {
		t.Errorf("the kernel was asked: %#x %q", req, name)
		return nil
	}
	d := device(t, f)
	for _, name := range []string{"", strings.Repeat("x", session.MaxName+1), "a\x00b", "\x00"} {
		for op, do := range map[string]func(string) (*session.Session, error){"Create": d.Create, "Retrieve": d.Retrieve} {
			if _, err := do(name); !errors.Is(err, session.ErrBadName) {
				t.Errorf("%s(%q): %v, want ErrBadName", op, name, err)
			}
		}
	}
}

// busyKernel is busy until it was opened often enough.
type busyKernel struct {
	session.Kernel
	left int
	then func()
}

func (k *busyKernel) Open(path string) (*fd.FD, error) {
	if k.left--; k.left >= 0 {
		return nil, unix.EBUSY
	}
	if k.then != nil {
		k.then()
		return nil, unix.EBUSY
	}
	return k.Kernel.Open(path)
}

func TestOpenWaitWaitsForTheOtherOpener(t *testing.T) {
	k := &busyKernel{Kernel: newFake(t), left: 3}
	d, err := session.OpenWait(t.Context(), k, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if k.left != -1 {
		t.Errorf("opened %d times after the other was done, want 1", -k.left)
	}
}

func TestOpenWaitGivesUpWhenTheContextEnds(t *testing.T) {
	cause := errors.New("the update was called off")
	ctx, cancel := context.WithCancelCause(t.Context())
	k := &busyKernel{left: 2, then: func() { cancel(cause) }}
	_, err := session.OpenWait(ctx, k, session.Path)
	for _, want := range []error{session.ErrBusy, unix.EBUSY, cause} {
		if !errors.Is(err, want) {
			t.Errorf("%v: is not %v", err, want)
		}
	}
}

func TestOpenWaitWaitsForNothingButAnotherOpener(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EIO, unix.EACCES} {
		f := newFake(t)
		f.OpenErr = errno
		if _, err := session.OpenWait(t.Context(), f, session.Path); !errors.Is(err, errno) {
			t.Errorf("%v: got %v", errno, err)
		}
	}
}

func TestOpenWaitTriesOnceWhenTheContextHasEnded(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	d, err := session.OpenWait(ctx, newFake(t), session.Path)
	if err != nil {
		t.Fatal(err)
	}
	_ = d.Close()
}

func TestNameOfWhatIsNoSession(t *testing.T) {
	f := newFake(t)
	if _, err := session.Adopt(f, fdtest.MemfdWith(t, "x")).Name(); !errors.Is(err, session.ErrNoIoctl) {
		t.Errorf("Name of a memfd: %v, want ErrNoIoctl", err)
	}
}

func TestCloseTwiceAndCloseOfNilDoNothing(t *testing.T) {
	d := device(t, newFake(t))
	s := create(t, d, "s")
	var none *session.Session
	if err := errors.Join(s.Close(), s.Close(), none.Close(), d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
}

func TestSessionsWorkSideBySide(t *testing.T) {
	d := device(t, newFake(t))
	shared := create(t, d, "shared")
	var wg sync.WaitGroup
	for i := range 8 {
		own, a, b := create(t, d, "own"+string(rune('a'+i))), fdtest.MemfdWith(t, "a"), fdtest.MemfdWith(t, "b")
		wg.Go(func() {
			if err := errors.Join(own.Preserve(a, 1), shared.Preserve(b, uint64(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkPreserve measures this package and the Fake, not a kernel. Most of
// it is the stack that fdtest takes of each descriptor the Fake keeps.
func BenchmarkPreserve(b *testing.B) {
	d := device(b, newFake(b))
	files := make([]*fd.FD, 20)
	for i := range files {
		files[i] = fdtest.MemfdWith(b, "x")
	}
	for b.Loop() {
		s, err := d.Create("bench")
		if err != nil {
			b.Fatal(err)
		}
		for token, f := range files {
			if err := s.Preserve(f, uint64(token)); err != nil {
				b.Fatal(err)
			}
		}
		_ = s.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(files)), "ns/fd")
}

func newFake(t testing.TB) *sessiontest.Fake {
	t.Helper()
	f, err := sessiontest.NewFake()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func device(t testing.TB, k session.Kernel) *session.Device {
	t.Helper()
	d, err := session.Open(k, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func create(t testing.TB, d *session.Device, name string) *session.Session {
	t.Helper()
	s, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// adopt makes a second Session of a duplicate of s.
func adopt(t testing.TB, k session.Kernel, s *session.Session) *session.Session {
	t.Helper()
	dup, err := s.FD().Dup()
	if err != nil {
		t.Fatal(err)
	}
	adopted := session.Adopt(k, dup)
	t.Cleanup(func() { _ = adopted.Close() })
	return adopted
}
