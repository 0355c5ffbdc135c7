// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// sample is a file that is carried over the kexec, and what comes out.
type sample struct {
	name string
	make func(t T) *fd.FD
	// late is done after the file was preserved.
	late func(t T, f *fd.FD)
	want state
}

// state is all that can be seen of a restored file. Of its mode, owner, times
// and name nothing is carried: it is a new memfd with all permissions.
type state struct {
	contents string
	pos      int64
	seals    int
	perm     uint32
	flags    int // O_ACCMODE and the flags that fcntl can set
}

// Seals in groups.
const (
	sealSize  = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	sealWrite = unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE
)

// samples returns the files of the session sampleSession, each under its index
// as token (memfd_luo_preserve, memfd_luo_freeze, memfd_luo_retrieve).
func samples() []sample {
	restored := func(contents string, pos int64, seals int) state {
		return state{contents: contents, pos: pos, seals: seals, perm: 0o777, flags: unix.O_RDWR}
	}
	zeros := string(make([]byte, 1<<20))
	page, odd := pattern(4096, "page"), pattern(3*4096+17, "odd")
	const unsealable = unix.F_SEAL_SEAL // without MFD_ALLOW_SEALING
	return []sample{
		{name: "empty", make: plain(0, ""), want: restored("", 0, unsealable)},
		{name: "one byte", make: plain(0, "x"), want: restored("x", 1, unsealable)},
		{name: "one page", make: plain(0, page), want: restored(page, 4096, unsealable)},
		{name: "odd size, position inside", make: at(plain(0, odd), 5), want: restored(odd, 5, unsealable)},
		{name: "position behind the end", make: at(plain(0, "x"), 1<<40), want: restored("x", 1<<40, unsealable)},
		{name: "holes", make: grown(plain(0, page), 1<<20), want: restored(page+zeros[4096:], 4096, unsealable)},
		{name: "nothing but a hole", make: grown(plain(0, ""), 1<<20), want: restored(zeros, 0, unsealable)},
		{name: "open for sealing", make: sealed(page, 0), want: restored(page, 4096, 0)},
		{name: "size sealed", make: sealed(page, sealSize), want: restored(page, 4096, sealSize)},
		{name: "all sealed", make: sealed(page, sealSize|sealWrite|unix.F_SEAL_SEAL),
			want: restored(page, 4096, sealSize|sealWrite|unix.F_SEAL_SEAL)},
		{name: "on tmpfs, never linked", make: at(tmpfile, 7), want: restored("", 7, unsealable)},
		{name: "private, opened for reading", make: private, want: restored("x", 0, unsealable)},
		{name: "changed after it was preserved", make: sealed("before", 0), late: change, want: restored("befNOW", 3, 0)},
		// F_SEAL_EXEC is put on a file that is executable, and then means
		// that it cannot be written either (memfd_add_seals).
		{name: "noexec", make: plain(unix.MFD_NOEXEC_SEAL, page),
			want: restored(page, 4096, unix.F_SEAL_EXEC|sealSize|sealWrite)},
	}
}

// plain makes a memfd with the position at its end.
func plain(flags int, data string) func(t T) *fd.FD {
	return func(t T) *fd.FD { return memfd(t, flags, data) }
}

// at sets the position of what make makes.
func at(make func(t T) *fd.FD, pos int64) func(t T) *fd.FD {
	return func(t T) *fd.FD {
		f := make(t)
		seek(t, f, pos)
		return f
	}
}

// grown makes what make makes larger.
func grown(make func(t T) *fd.FD, size int64) func(t T) *fd.FD {
	return func(t T) *fd.FD {
		f := make(t)
		ok(t, "ftruncate", f.Do(func(raw int) error { return unix.Ftruncate(raw, size) }))
		return f
	}
}

// sealed makes a memfd with exactly these seals.
func sealed(data string, seals int) func(t T) *fd.FD {
	return func(t T) *fd.FD {
		f := memfd(t, unix.MFD_ALLOW_SEALING, data)
		fcntl(t, f, unix.F_ADD_SEALS, seals)
		return f
	}
}

// private makes a memfd that only its owner may read, and opens it like that.
func private(t T) *fd.FD {
	f := memfd(t, 0, "x")
	ok(t, "fchmod", f.Do(func(raw int) error { return unix.Fchmod(raw, 0o400) }))
	second := reopen(t, f, unix.O_RDONLY)
	fcntl(t, second, unix.F_SETFL, unix.O_APPEND|unix.O_NONBLOCK)
	return second
}

// change writes to a preserved file, moves its position and seals it. The
// kernel keeps the pages, so it carries what is written; it takes the position
// at the kexec and the seals when the file is preserved.
func change(t T, f *fd.FD) {
	ok(t, "write", f.Do(func(raw int) error {
		_, err := unix.Pwrite(raw, []byte("NOW"), 3)
		return err
	}))
	seek(t, f, 3)
	fcntl(t, f, unix.F_ADD_SEALS, sealSize)
}

// seek sets a position.
func seek(t T, f *fd.FD, pos int64) {
	t.Helper()
	ok(t, "lseek", f.Do(func(raw int) error {
		_, err := unix.Seek(raw, pos, unix.SEEK_SET)
		return err
	}))
}

// stateOf returns the state of a restored file. It does not move its position.
func stateOf(t T, f *fd.FD) state {
	t.Helper()
	st := must(f.Stat())(t)
	buf := make([]byte, st.Size)
	s := state{
		seals: fcntl(t, f, unix.F_GET_SEALS, 0),
		perm:  st.Mode & 0o7777,
		flags: fcntl(t, f, unix.F_GETFL, 0) & (unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK),
	}
	ok(t, "read", f.Do(func(raw int) (err error) {
		if s.pos, err = unix.Seek(raw, 0, unix.SEEK_CUR); err != nil {
			return err
		}
		n, err := unix.Pread(raw, buf, 0)
		s.contents = string(buf[:n])
		return err
	}))
	return s
}

// check reports how a restored file differs from what it should be.
func (s sample) check(t T, f *fd.FD) {
	t.Helper()
	got, want := stateOf(t, f), s.want
	if got.contents != want.contents {
		t.Errorf("%s: %d bytes that are not the %d that were preserved", s.name, len(got.contents), len(want.contents))
	}
	got.contents, want.contents = "", ""
	if got != want {
		t.Errorf("%s: position, seals, mode, flags are %+v, want %+v", s.name, got, want)
	}
}

// preserveSamples preserves the samples in a session.
func preserveSamples(t T, s *session.Session) {
	t.Helper()
	for token, sample := range samples() {
		f := sample.make(t)
		ok(t, "preserve "+sample.name, s.Preserve(f, uint64(token)))
		if sample.late != nil {
			sample.late(t, f)
		}
	}
}
