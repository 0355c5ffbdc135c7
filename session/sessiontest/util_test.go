// SPDX-License-Identifier: Apache-2.0

package sessiontest_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

func open(t *testing.T, k session.Kernel) *session.Device {
	t.Helper()
	d, err := session.Open(k, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func create(t *testing.T, d *session.Device, name string) *session.Session {
	t.Helper()
	s, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func retrieve(t *testing.T, d *session.Device, name string) *session.Session {
	t.Helper()
	s, err := d.Retrieve(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func retrieveFD(t *testing.T, s *session.Session, token uint64) *fd.FD {
	t.Helper()
	f, err := s.RetrieveFD(token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func contents(t *testing.T, f *fd.FD) string {
	t.Helper()
	var buf [64]byte
	var n int
	if err := f.Do(func(raw int) (err error) {
		n, err = unix.Pread(raw, buf[:], 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}
