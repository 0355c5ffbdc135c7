// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// shmDir is a tmpfs on every system that systemd has booted.
const shmDir = "/dev/shm"

// deviceWait bounds the wait for others, PID 1 say, who have the device open.
const deviceWait = 10 * time.Second

// must returns v, or ends the check on an error: must(f())(t).
func must[V any](v V, err error) func(t T) V {
	return func(t T) V {
		t.Helper()
		if err != nil {
			t.Fatalf("%v", err)
		}
		return v
	}
}

// own makes the end of the check close f.
func own(t T, f *fd.FD) *fd.FD {
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// rawFD is must for a descriptor as x/sys returns it, and own.
func rawFD(raw int, err error) func(t T) *fd.FD {
	return func(t T) *fd.FD {
		t.Helper()
		if err != nil {
			t.Fatalf("make a file to test with: %v", err)
		}
		return own(t, fd.New(raw))
	}
}

// ok reports an error that should not be.
func ok(t T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// fails reports when err is not all that it should be.
func fails(t T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%s: got error %v, want %v", what, err, w)
		}
	}
}

// device opens the device until the end of the check.
func device(t T, k session.Kernel) *session.Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deviceWait)
	defer cancel()
	d := must(session.OpenWait(ctx, k, session.Path))(t)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// rawDevice is device for requests that package session does not make.
func rawDevice(t T, k session.Kernel) *fd.FD {
	t.Helper()
	_ = device(t, k).Close() // has waited for others
	return own(t, must(k.Open(session.Path))(t))
}

// create makes a session that the end of the check closes.
func create(t T, d *session.Device, name string) *session.Session {
	t.Helper()
	s := must(d.Create(name))(t)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// retrieve takes over a session that the end of the check closes.
func retrieve(t T, d *session.Device, name string) *session.Session {
	t.Helper()
	s := must(d.Retrieve(name))(t)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// retrieveFD retrieves a file that the end of the check closes.
func retrieveFD(t T, s *session.Session, token uint64) *fd.FD {
	t.Helper()
	return own(t, must(s.RetrieveFD(token))(t))
}

// memfd makes a memfd with data in it and the position behind it.
func memfd(t T, flags int, data string) *fd.FD {
	t.Helper()
	f := rawFD(unix.MemfdCreate("conform", flags|unix.MFD_CLOEXEC))(t)
	ok(t, "write to a memfd", f.Do(func(raw int) error {
		_, err := unix.Write(raw, []byte(data))
		return err
	}))
	return f
}

// reopen opens the file behind f a second time.
func reopen(t T, f *fd.FD, flags int) *fd.FD {
	t.Helper()
	var second *fd.FD
	_ = f.Do(func(raw int) error {
		second = rawFD(unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), flags|unix.O_CLOEXEC, 0))(t)
		return nil
	})
	return second
}

// shmFile makes a file on tmpfs that has a name until the end of the check.
func shmFile(t T) (f *fd.FD, path string) {
	t.Helper()
	file := must(os.CreateTemp(shmDir, "conform"))(t)
	defer file.Close()
	t.Cleanup(func() { _ = os.Remove(file.Name()) })
	return rawFD(unix.Open(file.Name(), unix.O_RDWR|unix.O_CLOEXEC, 0))(t), file.Name()
}

// fcntl asks for one number about f.
func fcntl(t T, f *fd.FD, cmd, arg int) int {
	t.Helper()
	var n int
	ok(t, "fcntl", f.Do(func(raw int) (err error) {
		n, err = unix.FcntlInt(uintptr(raw), cmd, arg)
		return err
	}))
	return n
}

// closeOnExec reports when f is not close-on-exec.
func closeOnExec(t T, what string, f *fd.FD) {
	t.Helper()
	if fcntl(t, f, unix.F_GETFD, 0)&unix.FD_CLOEXEC == 0 {
		t.Errorf("%s is not close-on-exec", what)
	}
}

// argument makes the argument of an ioctl: zeros that start with their size.
func argument(size int) []byte {
	arg := make([]byte, size)
	binary.NativeEndian.PutUint32(arg, uint32(size))
	return arg
}

// pattern returns n bytes that tell where they belong.
func pattern(n int, seed string) string {
	return strings.Repeat(seed+"\x00\xff\n", n/len(seed)+1)[:n]
}
