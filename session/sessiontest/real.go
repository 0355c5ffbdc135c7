// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// Real returns the checks of what a Fake cannot do. Like those of Before they
// can be run in any kernel, again and again.
func Real() []Check {
	return []Check{
		{Name: "a preserved file cannot change its size until the session is closed", Run: sizeIsFrozen},
		{Name: "the link in /proc tells a session's name where GET_NAME does not", Run: nameFromLink},
	}
}

// sizeIsFrozen checks shmem_freeze (mm/shmem.c).
func sizeIsFrozen(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.frozen")
	f := grown(plain(0, "x"), 8192)(t)
	ok(t, "preserve", s.Preserve(f, 1))
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	changes := map[string]func(raw int) error{
		"truncate": func(raw int) error { return unix.Ftruncate(raw, 1) },
		"grow":     func(raw int) error { return unix.Ftruncate(raw, 16384) },
		"append": func(raw int) error {
			_, err := unix.Pwrite(raw, []byte("xx"), 8191)
			return err
		},
		"fallocate":    func(raw int) error { return unix.Fallocate(raw, 0, 0, 4096) },
		"punch a hole": func(raw int) error { return unix.Fallocate(raw, punch, 0, 4096) },
	}
	for what, change := range changes {
		fails(t, what, f.Do(change), unix.EPERM)
	}
	ok(t, "close", s.Close())
	for what, change := range changes {
		ok(t, what+" when the session is closed", f.Do(change))
	}
}

// nameFromLink checks what Session.Name does before Linux 7.2.
func nameFromLink(t T, k session.Kernel) {
	d := device(t, k)
	for _, name := range []string{"x", longName[:38]} {
		old := session.Adopt(withoutGetName{k}, own(t, must(create(t, d, name).FD().Dup())(t)))
		if got, err := old.Name(); got != name || err != nil {
			t.Errorf("name is %q, %v; want %q", got, err, name)
		}
	}
}

// withoutGetName is a kernel that does not know GET_NAME.
type withoutGetName struct{ session.Kernel }

// Ioctl implements session.Kernel.
func (k withoutGetName) Ioctl(f *fd.FD, req uint, arg []byte) error {
	if req == session.ReqGetName {
		return unix.EINVAL
	}
	return k.Kernel.Ioctl(f, req, arg)
}
