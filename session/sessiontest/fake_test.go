// SPDX-License-Identifier: Apache-2.0

package sessiontest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/session/sessiontest"
)

// What the conformance suite cannot see: a second kexec, and the faults and
// limits that a test can set.

func TestUnretrievedAndUnfinishedSessionsAreGoneAfterTheNextKexec(t *testing.T) {
	f := newFake(t)
	d := open(t, f)
	held := []*session.Session{create(t, d, "ignored"), create(t, d, "retrieved")}
	kexec(t, f, held...)
	retrieved, err := open(t, f).Retrieve("retrieved")
	if err != nil {
		t.Fatal(err)
	}
	kexec(t, f, retrieved)
	d = open(t, f)
	for _, name := range []string{"ignored", "retrieved"} {
		if _, err := d.Retrieve(name); !errors.Is(err, session.ErrNoSession) {
			t.Errorf("Retrieve(%q) after a second kexec: %v, want ErrNoSession", name, err)
		}
	}
}

func TestFinishedFilesAreCarriedOverASecondKexec(t *testing.T) {
	f := newFake(t)
	first := create(t, open(t, f), "s")
	if err := first.Preserve(fdtest.MemfdWith(t, "carried"), 1); err != nil {
		t.Fatal(err)
	}
	kexec(t, f, first)
	d := open(t, f)
	again, next := retrieve(t, d, "s"), create(t, d, "s")
	file := retrieveFD(t, again, 1)
	if err := errors.Join(again.Finish(), next.Preserve(file, 2)); err != nil {
		t.Fatal(err)
	}
	kexec(t, f, next)
	last := retrieveFD(t, retrieve(t, open(t, f), "s"), 2)
	if got := contents(t, last); got != "carried" {
		t.Errorf("contents after two kexecs: %q", got)
	}
}

func TestDescriptorsFromBeforeAKexecAreNoSessions(t *testing.T) {
	f := newFake(t)
	s := create(t, open(t, f), "s")
	if err := f.Kexec(); err != nil {
		t.Fatal(err)
	}
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 1); !errors.Is(err, session.ErrNoIoctl) {
		t.Errorf("Preserve: %v, want ErrNoIoctl", err)
	}
}

func TestFailedRetrieveStaysFailed(t *testing.T) {
	f := newFake(t)
	s := create(t, open(t, f), "s")
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 7); err != nil {
		t.Fatal(err)
	}
	kexec(t, f, s)
	s = retrieve(t, open(t, f), "s")
	f.Fail = func(req uint, name string, token uint64) error {
		if req == session.ReqRetrieveFD && name == "s" && token == 7 {
			return unix.ENOMEM
		}
		return nil
	}
	for range 2 {
		if _, err := s.RetrieveFD(7); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("RetrieveFD: %v, want ENOMEM", err)
		}
		f.Fail = nil
	}
}

func TestFailIsAskedAboutEveryRequest(t *testing.T) {
	f := newFake(t)
	var asked []string
	f.Fail = func(req uint, name string, token uint64) error {
		asked = append(asked, fmt.Sprintf("%#x %s %d", req, name, token))
		return nil
	}
	s := create(t, open(t, f), "s")
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 3); err != nil {
		t.Fatal(err)
	}
	kexec(t, f, s)
	s = retrieve(t, open(t, f), "s")
	retrieveFD(t, s, 3)
	if _, err := s.Name(); err != nil {
		t.Error(err)
	}
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
	want := []string{"0xba00 s 0", "0xba40 s 3", "0xba01 s 0", "0xba41 s 3", "0xba43 s 0", "0xba42 s 0"}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestFailedRequestDoesNothing(t *testing.T) {
	f := newFake(t)
	d := open(t, f)
	f.Fail = func(uint, string, uint64) error { return unix.ENOMEM }
	if _, err := d.Create("s"); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("Create: %v, want ENOMEM", err)
	}
	f.Fail = nil
	s, file := create(t, d, "s"), fdtest.MemfdWith(t, "x")
	f.Fail = func(uint, string, uint64) error { return unix.EFBIG }
	if err := s.Preserve(file, 1); !errors.Is(err, unix.EFBIG) {
		t.Errorf("Preserve: %v, want EFBIG", err)
	}
	f.Fail = nil
	if err := s.Preserve(file, 1); err != nil {
		t.Errorf("Preserve afterwards: %v", err)
	}
}

func TestOlderKernelsTellOfOutgoingSessionsByTheirNamesAlone(t *testing.T) {
	f := newFake(t)
	kexec(t, f, create(t, open(t, f), "came"))
	f.NoGetName, f.NoDirection = true, true
	d := open(t, f)
	for name, s := range map[string]*session.Session{"came": retrieve(t, d, "came"), "made": create(t, d, "made")} {
		if _, err := s.Outgoing(); !errors.Is(err, session.ErrUnchecked) {
			t.Errorf("%s: Outgoing: %v, want ErrUnchecked", name, err)
		}
		for range 2 { // it changes nothing
			if out, err := d.HasOutgoing(name); out != (name == "made") || err != nil {
				t.Errorf("HasOutgoing(%q): %v, %v", name, out, err)
			}
		}
	}
}

func TestLimitsOfOlderKernels(t *testing.T) {
	f := newFake(t)
	f.MaxFiles, f.MaxSessions, f.NoGetName = 1, 1, true
	d := open(t, f)
	s := create(t, d, "s")
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 2); !errors.Is(err, session.ErrLimit) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("second file: %v, want ErrLimit and ENOSPC", err)
	}
	if _, err := d.Create("t"); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("second session: %v, want ENOMEM", err)
	}
	if _, err := s.Name(); !errors.Is(err, session.ErrNoIoctl) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("Name: %v, want ErrNoIoctl and EINVAL", err)
	}
}

func TestOlderKernelsForgetSeals(t *testing.T) {
	f := newFake(t)
	f.NoSeals = true
	s := create(t, open(t, f), "s")
	raw, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	file := fd.New(raw)
	defer file.Close()
	if err := errors.Join(addSeal(file, unix.F_SEAL_GROW), s.Preserve(file, 1)); err != nil {
		t.Fatal(err)
	}
	kexec(t, f, s)
	again := retrieveFD(t, retrieve(t, open(t, f), "s"), 1)
	if err := addSeal(again, unix.F_SEAL_GROW); !errors.Is(err, unix.EPERM) {
		t.Errorf("F_SEAL_GROW can be added again: %v, want EPERM", err)
	}
	if err := again.Do(func(raw int) error { return unix.Ftruncate(raw, 100) }); err != nil {
		t.Errorf("it is sealed against growing: %v", err)
	}
}

func addSeal(f *fd.FD, seal int) error {
	return f.Do(func(raw int) error {
		_, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seal)
		return err
	})
}

func TestOpenErrIsWhatOpenReturns(t *testing.T) {
	f := newFake(t)
	f.OpenErr = unix.EIO
	if _, err := f.Open(session.Path); err != unix.EIO {
		t.Errorf("Open: %v, want EIO", err)
	}
	f.OpenErr = nil
	if _, err := f.Open("/dev/null"); err != unix.ENOENT {
		t.Errorf("Open of another path: %v, want ENOENT", err)
	}
}

// A kernel that answers nothing must not pass a single check.
func TestDeadKernelFailsEveryCheck(t *testing.T) {
	checks := append(sessiontest.Before(), sessiontest.After()...)
	var out strings.Builder
	if failed := conform.Run(&out, session.Kernel(deadKernel{}), checks); failed != len(checks) {
		t.Errorf("%d of %d checks failed:\n%s", failed, len(checks), out.String())
	}
}

type deadKernel struct{}

func (deadKernel) Open(string) (*fd.FD, error)      { return nil, unix.ENOENT }
func (deadKernel) Ioctl(*fd.FD, uint, []byte) error { return unix.ENOTTY }
