// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/bundle"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// empty returns a bundle, which is closed at the end of the test if it was not before.
func empty(t *testing.T) *bundle.Bundle {
	t.Helper()
	b, err := bundle.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// open returns what is behind f, by the inodes, as NAME:INODE.
func open(t *testing.T, f *fd.FD) (list []string) {
	t.Helper()
	found, err := bundle.Open(f)
	if err != nil {
		t.Error(err)
	}
	for _, n := range found {
		list = append(list, entry(t, n.Name, n.FD))
		flags := 0
		if err := n.FD.Do(func(raw int) (err error) { flags, err = unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0); return err }); err != nil {
			t.Error(err)
		}
		if flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s is not close-on-exec", n.Name)
		}
		_ = n.FD.Close()
	}
	return list
}

func entry(t *testing.T, name string, f *fd.FD) string {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s:%d", name, st.Ino)
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("there are %q, not %q", got, want)
	}
}

func TestWhatWasAddedIsThereAsOftenAsItIsLookedAtAndForWhoeverHasTheDescriptor(t *testing.T) {
	b := empty(t)
	other, err := b.FD().Dup() // before there is anything in it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	equal(t, open(t, b.FD()), nil)
	var want []string
	for i := range 3 {
		f := fdtest.Memfd(t)
		name := strings.Repeat("n", 1+127*i)
		want = append(want, entry(t, name, f))
		if err := b.Add(name, f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		equal(t, open(t, b.FD()), want)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		equal(t, open(t, other), want)
	}
}

func TestABundleSaysThatItIsFullAndLosesNothing(t *testing.T) {
	b, f := empty(t), fdtest.Memfd(t)
	var want []string
	var err error
	for {
		name := fmt.Sprintf("fdbridge.%054d", len(want)) // the longest name of a session
		if err = b.Add(name, f); err != nil {
			break
		}
		want = append(want, entry(t, name, f))
	}
	if !errors.Is(err, bundle.ErrFull) {
		t.Error(err)
	}
	if len(want) < 100 {
		t.Errorf("it is full with %d", len(want))
	}
	equal(t, open(t, b.FD()), want)
}

func TestNamesThatCannotBeAreRefused(t *testing.T) {
	b, f := empty(t), fdtest.Memfd(t)
	for _, name := range []string{"", strings.Repeat("n", 256)} {
		if err := b.Add(name, f); err == nil {
			t.Errorf("a name of %d bytes is taken", len(name))
		}
	}
	equal(t, open(t, b.FD()), nil)
}

func TestWhatIsNoBundleIsAnError(t *testing.T) {
	for name, send := range map[string]func(raw int) error{
		"no descriptor": func(raw int) error { return unix.Sendmsg(raw, []byte("a"), nil, nil, 0) },
		"two":           func(raw int) error { return unix.Sendmsg(raw, []byte("a"), unix.UnixRights(raw, raw), nil, 0) },
		"a long name": func(raw int) error {
			return unix.Sendmsg(raw, []byte(strings.Repeat("n", 256)), unix.UnixRights(raw), nil, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f, way := fd.New(pair[0]), fd.New(pair[1])
			defer func() { _ = errors.Join(f.Close(), way.Close()) }()
			good := func(raw int) error { return unix.Sendmsg(raw, []byte("good"), unix.UnixRights(raw), nil, 0) }
			if err := errors.Join(way.Do(good), way.Do(send), way.Do(good)); err != nil {
				t.Fatal(err)
			}
			list, err := bundle.Open(f)
			if !errors.Is(err, bundle.ErrMessage) || len(list) != 1 || list[0].Name != "good" {
				t.Errorf("%v, %v", list, err)
			}
			for _, named := range list {
				_ = named.FD.Close()
			}
		})
	}
	if _, err := bundle.Open(fdtest.Memfd(t)); err == nil {
		t.Error("a memfd is taken for a bundle")
	}
}
