// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"errors"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/session"
)

// Before returns the checks of the device and of outgoing sessions. They leave
// no session behind and can be run in any kernel, again and again.
func Before() []Check {
	return append([]Check{
		{Name: "the device has one opener at a time", Run: oneOpener},
		{Name: "sessions outlive the device", Run: outliveDevice},
		{Name: "descriptors of sessions are close-on-exec", Run: sessionCloseOnExec},
		{Name: "names have 1 to 63 bytes of any kind but NUL", Run: names},
		{Name: "an outgoing session's name is its own until it is closed", Run: uniqueName},
		{Name: "outgoing sessions cannot be retrieved", Run: outgoingNotRetrieved},
		{Name: "outgoing sessions cannot be finished and give no files", Run: outgoingDirection},
		{Name: "tokens are any number, unique in their session", Run: tokens},
		{Name: "an inode is preserved once in all sessions", Run: onceInAllSessions},
		{Name: "a file that was refused leaves its token free", Run: refusedTokenFree},
		{Name: "a preserved file can be read and written inside its size", Run: usableWhilePreserved},
		{Name: "closing a session's last descriptor lets go of its files", Run: lastClose},
		{Name: "a session lives on in a socket's queue", Run: sessionInFlight},
	}, append(kindChecks(), requestChecks()...)...)
}

func oneOpener(t T, k session.Kernel) {
	d := device(t, k)
	second, err := session.Open(k, session.Path)
	if err == nil {
		_ = second.Close()
	}
	fails(t, "open while it is open", err, session.ErrBusy, unix.EBUSY)
	ok(t, "close", d.Close())
	_ = device(t, k)
}

func outliveDevice(t T, k session.Kernel) {
	d := device(t, k)
	s := create(t, d, "conform.outlive")
	ok(t, "close", d.Close())
	ok(t, "preserve after the device was closed", s.Preserve(memfd(t, 0, "x"), 1))
	_, err := device(t, k).Create("conform.outlive")
	fails(t, "create in a second opening", err, session.ErrExist)
}

func sessionCloseOnExec(t T, k session.Kernel) {
	closeOnExec(t, "a created session", create(t, device(t, k), "conform.cloexec").FD())
}

// longName is as long as names can be, 63 bytes, and has bytes of most kinds.
const (
	longName = odd21 + odd21 + odd21
	odd21    = "\x01 /%s\n\xff~\t\\\"'äöü .."
)

func names(t T, k session.Kernel) {
	dev := rawDevice(t, k)
	for what, name := range map[string]string{"an empty name": "", "a name without NUL": strings.Repeat("x", 64)} {
		arg := argument(sizeNamed)
		copy(arg[atName:], name)
		fails(t, "create with "+what, k.Ioctl(dev, session.ReqCreateSession, arg), unix.EINVAL)
	}
	ok(t, "close", dev.Close())
	d := device(t, k)
	for _, name := range []string{longName, "x"} {
		got, err := create(t, d, name).Name()
		if got != name || err != nil {
			t.Errorf("name of a session: %q, %v; want %q", got, err, name)
		}
	}
}

func uniqueName(t T, k session.Kernel) {
	d := device(t, k)
	first := create(t, d, "conform.unique")
	_, err := d.Create("conform.unique")
	fails(t, "create again", err, session.ErrExist, unix.EEXIST)
	create(t, d, "conform.unique2")
	ok(t, "close", first.Close())
	create(t, d, "conform.unique")
}

func outgoingNotRetrieved(t T, k session.Kernel) {
	d := device(t, k)
	create(t, d, "conform.outgoing")
	_, err := d.Retrieve("conform.outgoing")
	fails(t, "retrieve an outgoing session", err, session.ErrNoSession, unix.ENOENT)
}

func outgoingDirection(t T, k session.Kernel) {
	d := device(t, k)
	s := create(t, d, "conform.direction")
	for name, want := range map[string]bool{"conform.direction": true, "conform.directio": false} {
		if out, err := d.HasOutgoing(name); out != want || err != nil {
			t.Errorf("an outgoing session of the name %q: %v, %v", name, out, err)
		}
	}
	ok(t, "preserve", s.Preserve(memfd(t, 0, "x"), 1))
	_, err := s.RetrieveFD(1)
	fails(t, "retrieve a file", err, unix.EINVAL)
	fails(t, "finish", s.Finish(), session.ErrDirection, unix.EINVAL)
	if out, err := s.Outgoing(); !out || err != nil {
		t.Errorf("a created session: outgoing %v, %v", out, err)
	}
	ok(t, "preserve after it was asked for its direction", s.Preserve(memfd(t, 0, "y"), 2))
	_, err = session.Adopt(k, memfd(t, 0, "")).Outgoing()
	fails(t, "ask a memfd for its direction", err, session.ErrNoIoctl, unix.ENOTTY)
}

func tokens(t T, k session.Kernel) {
	d := device(t, k)
	one, two := create(t, d, "conform.tokens1"), create(t, d, "conform.tokens2")
	for _, s := range []*session.Session{one, two} {
		for _, token := range []uint64{0, 1, math.MaxInt64 + 1, math.MaxUint64} {
			ok(t, "preserve", s.Preserve(memfd(t, 0, "x"), token))
		}
	}
	fails(t, "preserve under a used token", one.Preserve(memfd(t, 0, "x"), math.MaxUint64),
		session.ErrTokenUsed, unix.EEXIST)
	fails(t, "preserve what is refused under a used token", one.Preserve(pipeEnd(t), 0),
		session.ErrTokenUsed, unix.EEXIST)
}

func onceInAllSessions(t T, k session.Kernel) {
	d := device(t, k)
	one, two := create(t, d, "conform.once1"), create(t, d, "conform.once2")
	f := memfd(t, 0, "x")
	again := reopen(t, f, unix.O_RDWR)
	ok(t, "preserve", one.Preserve(f, 1))
	fails(t, "preserve in the same session", one.Preserve(f, 2), session.ErrPreserved, unix.EBUSY)
	fails(t, "preserve in another session", two.Preserve(f, 2), session.ErrPreserved, unix.EBUSY)
	fails(t, "preserve a second open file", two.Preserve(again, 2), session.ErrPreserved, unix.EBUSY)
	ok(t, "close", one.Close())
	ok(t, "preserve when the first session is closed", two.Preserve(again, 2))
}

func refusedTokenFree(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.refused")
	fails(t, "preserve a pipe", s.Preserve(pipeEnd(t), 5), session.ErrUnsupported)
	ok(t, "preserve a memfd under the same token", s.Preserve(memfd(t, 0, "x"), 5))
}

func usableWhilePreserved(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.usable")
	f := memfd(t, 0, "before")
	ok(t, "preserve", s.Preserve(f, 1))
	ok(t, "use", f.Do(func(raw int) error {
		_, writeErr := unix.Pwrite(raw, []byte("AFT"), 3)
		got := make([]byte, 6)
		_, readErr := unix.Pread(raw, got, 0)
		if string(got) != "befAFT" {
			t.Errorf("contents are %q", got)
		}
		return errors.Join(writeErr, readErr)
	}))
}

func lastClose(t T, k session.Kernel) {
	d := device(t, k)
	one, two := create(t, d, "conform.last1"), create(t, d, "conform.last2")
	f := memfd(t, 0, "x")
	ok(t, "preserve", one.Preserve(f, 1))
	dup := session.Adopt(k, must(one.FD().Dup())(t))
	t.Cleanup(func() { _ = dup.Close() })
	ok(t, "close", one.Close())
	fails(t, "preserve while a duplicate is open", two.Preserve(f, 1), session.ErrPreserved)
	fails(t, "preserve in the duplicate", dup.Preserve(memfd(t, 0, "x"), 1), session.ErrTokenUsed)
	ok(t, "close the duplicate", dup.Close())
	ok(t, "preserve when all are closed", two.Preserve(f, 1))
}

func sessionInFlight(t T, k session.Kernel) {
	d := device(t, k)
	s := create(t, d, "conform.flight")
	ok(t, "preserve", s.Preserve(memfd(t, 0, "x"), 1))
	arrived := session.Adopt(k, throughSocket(t, s))
	t.Cleanup(func() { _ = arrived.Close() })
	if name, err := arrived.Name(); name != "conform.flight" || err != nil {
		t.Errorf("name of what arrived: %q, %v", name, err)
	}
	fails(t, "preserve in what arrived", arrived.Preserve(memfd(t, 0, "x"), 1), session.ErrTokenUsed)
	_, err := d.Create("conform.flight")
	fails(t, "create while it is open", err, session.ErrExist)
}
