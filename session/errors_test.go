// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session"
)

// answering is a Kernel whose every answer is one error.
type answering struct{ err error }

func (k answering) Open(string) (*fd.FD, error)      { return nil, k.err }
func (k answering) Ioctl(*fd.FD, uint, []byte) error { return k.err }

// openable is a Kernel that can be opened all the same; what it opens is f.
type openable struct {
	session.Kernel
	f *fd.FD
}

func (k openable) Open(string) (*fd.FD, error) { return k.f.Dup() }

// errorCase is an operation and an errno that it can meet.
type errorCase struct {
	do    func(k session.Kernel) error
	errno unix.Errno
	kind  error  // nil for none
	text  string // where it is worth looking at
}

// errorCases returns every operation with each errno that means something.
func errorCases(t *testing.T) []errorCase {
	file := fdtest.MemfdWith(t, "x")
	open := func(k session.Kernel) error { _, err := session.Open(k, session.Path); return err }
	create := func(k session.Kernel) error { _, err := device(t, openable{k, file}).Create("s"); return err }
	retrieve := func(k session.Kernel) error { _, err := device(t, openable{k, file}).Retrieve("s"); return err }
	preserve := func(k session.Kernel) error { return session.Adopt(k, file).Preserve(file, 3) }
	retrieveFD := func(k session.Kernel) error { _, err := session.Adopt(k, file).RetrieveFD(3); return err }
	finish := func(k session.Kernel) error { return session.Adopt(k, file).Finish() }
	name := func(k session.Kernel) error { _, err := session.Adopt(k, file).Name(); return err }
	return []errorCase{
		{open, unix.ENOENT, session.ErrNoDevice, "open /dev/liveupdate: this kernel offers no live update: it needs CONFIG_LIVEUPDATE=y and to be booted with kho=on liveupdate=on (ENOENT)"},
		{open, unix.ENXIO, session.ErrNoDevice, ""},
		{open, unix.ENODEV, session.ErrNoDevice, ""},
		{open, unix.EBUSY, session.ErrBusy, "open /dev/liveupdate: another process has the device open (EBUSY)"},
		{open, unix.EIO, session.ErrBroken, ""},
		{open, unix.EACCES, nil, "open /dev/liveupdate: permission denied"},
		{create, unix.EEXIST, session.ErrExist, `session "s": create: an outgoing session of this name exists (EEXIST)`},
		{create, unix.ENOSPC, session.ErrLimit, ""},
		{create, unix.ENOTTY, session.ErrNoIoctl, ""},
		{create, unix.ENOMEM, nil, ""},
		{retrieve, unix.ENOENT, session.ErrNoSession, `session "s": retrieve: there is no incoming session of this name (ENOENT)`},
		{retrieve, unix.EINVAL, session.ErrRetrieved, ""},
		{preserve, unix.ENOENT, session.ErrUnsupported, "token 3: preserve fd: the kernel cannot carry this kind of file (ENOENT)"},
		{preserve, unix.EBUSY, session.ErrPreserved, ""},
		{preserve, unix.EEXIST, session.ErrTokenUsed, ""},
		{preserve, unix.ENOSPC, session.ErrLimit, ""},
		{preserve, unix.EINVAL, session.ErrDirection, ""},
		{preserve, unix.EFBIG, nil, "token 3: preserve fd: file too large"},
		{retrieveFD, unix.ENOENT, session.ErrNoToken, "token 3: retrieve fd: the session has no file under this token (ENOENT)"},
		{retrieveFD, unix.EINVAL, nil, ""},
		{finish, unix.EINVAL, session.ErrDirection, ""},
		{finish, unix.EBUSY, nil, "finish: device or resource busy"},
		{name, unix.EINVAL, session.ErrNoIoctl, ""},
		{name, unix.ENOTTY, session.ErrNoIoctl, "get name: the descriptor is no live-update session, or the kernel does not know the request (ENOTTY)"},
		{name, unix.EFAULT, nil, ""},
	}
}

func TestErrorsAnswerForTheSentinelAndTheErrno(t *testing.T) {
	for _, c := range errorCases(t) {
		err := c.do(answering{c.errno})
		var typed *session.Error
		switch {
		case !errors.As(err, &typed):
			t.Errorf("%v: %T is no *Error", c.errno, err)
		case !errors.Is(err, c.errno):
			t.Errorf("%v: is not %v", err, c.errno)
		case typed.Kind != c.kind:
			t.Errorf("%v: is %v, want %v", err, typed.Kind, c.kind)
		case c.kind != nil && !errors.Is(err, c.kind):
			t.Errorf("%v: is not %v", err, c.kind)
		case c.text != "" && err.Error() != c.text:
			t.Errorf("got  %s\nwant %s", err, c.text)
		}
	}
}

func TestAdoptedSessionIsNamedInErrors(t *testing.T) {
	s := create(t, device(t, newFake(t)), "fdbridge.a.service")
	f := newFake(t)
	adopted := adopt(t, f, create(t, device(t, f), "fdbridge.b.service"))
	for err, want := range map[error]string{
		s.Finish():       `session "fdbridge.a.service": finish: ` + session.ErrDirection.Error() + " (EINVAL)",
		adopted.Finish(): `session "fdbridge.b.service": finish: ` + session.ErrDirection.Error() + " (EINVAL)",
	} {
		if err.Error() != want {
			t.Errorf("got  %s\nwant %s", err, want)
		}
	}
}

func TestUseAfterCloseSaysSo(t *testing.T) {
	d := device(t, newFake(t))
	s, file := create(t, d, "s"), fdtest.MemfdWith(t, "x")
	_ = s.Close()
	if err := s.Preserve(file, 1); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("Preserve in a closed session: %v", err)
	}
	if _, err := s.Name(); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("Name of a closed session: %v", err)
	}
	s = create(t, d, "s")
	_ = file.Close()
	if err := s.Preserve(file, 1); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("Preserve of a closed file: %v", err)
	}
}
