// SPDX-License-Identifier: Apache-2.0

// Package storetest says what PID 1 makes of what is sent to a unit's fd store. What
// stands in for PID 1 in tests is to do the same, and PID 1 itself goes through the checks in a
// virtual machine.
package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// Room is FileDescriptorStoreMax= of the unit.
const Room = 3

// Subject is PID 1, or what stands in for it, with a unit whose store is empty and has
// room for Room fds.
type Subject struct {
	Unit   string
	Keeper Keeper
	PID1   PID1
	// Duplicator duplicates out of what PID 1 has now.
	Duplicator func() (Duplicator, error)
	Kernel     session.Kernel
}

// Keeper is the unit's way to its store, as a notify.Socket is.
type Keeper interface {
	Store(name string, f *fd.FD) error
	Remove(name string) error
	Barrier() error
}

// PID1 answers about stores, as a units.Reader does.
type PID1 interface {
	Entries(ctx context.Context, unit string) ([]units.Entry, error)
	Stored(ctx context.Context, names []string) (map[string]int, error)
}

// Duplicator is what of a units.Duplicator is checked.
type Duplicator interface {
	Dup(entries []units.Entry) ([]*units.File, []error)
	Close() error
}

// Checks are all checks. Each leaves the store empty.
func Checks() []conform.Check[Subject] {
	return []conform.Check[Subject]{
		{Name: "what is stored last stands first", Run: lastStandsFirst},
		{Name: "what there is no room for is dropped and what is there stays", Run: fullStore},
		{Name: "an open file is stored once", Run: oneOpenFile},
		{Name: "a file that was opened twice is stored twice", Run: openedTwice},
		{Name: "all of a name are removed", Run: removed},
		{Name: "an entry says which file it is", Run: identity},
		{Name: "an entry is duplicated as the open file that was stored", Run: duplicated},
		{Name: "sessions are known, those with names of up to 38 bytes by them, and not counted", Run: sessions},
	}
}

func lastStandsFirst(t conform.T, s Subject) {
	for _, name := range []string{"a", "b", "c"} {
		s.store(t, name, memfd(t))
	}
	s.has(t, "c", "b", "a")
}

func fullStore(t conform.T, s Subject) {
	for i := range Room + 1 {
		s.store(t, fmt.Sprint(i), memfd(t))
	}
	s.has(t, "2", "1", "0")
	s.remove(t, "1")
	s.store(t, "4", memfd(t))
	s.has(t, "4", "2", "0")
}

func oneOpenFile(t conform.T, s Subject) {
	f := memfd(t)
	dup, err := f.Dup()
	if err != nil {
		t.Fatalf("%v", err)
	}
	own(t, dup)
	s.store(t, "a", f)
	s.store(t, "b", dup)
	s.has(t, "a")
}

func openedTwice(t conform.T, s Subject) {
	f := memfd(t)
	s.store(t, "a", f)
	s.store(t, "b", again(t, f))
	s.has(t, "b", "a")
}

func removed(t conform.T, s Subject) {
	s.store(t, "a", memfd(t))
	s.store(t, "b", memfd(t))
	s.store(t, "a", memfd(t))
	s.remove(t, "a")
	s.has(t, "b")
	s.remove(t, "c")
	s.has(t, "b")
}

func identity(t conform.T, s Subject) {
	f := memfd(t)
	st, err := f.Stat()
	if err != nil {
		t.Fatalf("%v", err)
	}
	flags, err := units.OpenFlags(f)
	if err != nil {
		t.Fatalf("%v", err)
	}
	s.store(t, "a", f)
	want := units.Entry{Name: "a", Mode: st.Mode, Dev: st.Dev, Ino: st.Ino, Rdev: st.Rdev, Path: "/memfd:storetest (deleted)", Flags: flags}
	if got := s.has(t, "a")[0]; got != want {
		t.Errorf("the entry is %+v, want %+v", got, want)
	}
}

func duplicated(t conform.T, s Subject) {
	a, b := memfd(t), memfd(t)
	s.store(t, "a", a)
	s.store(t, "b", b)
	entries := s.has(t, "b", "a")
	d, err := s.Duplicator()
	if err != nil {
		t.Fatalf("%v", err)
	}
	files, failed := d.Dup(entries)
	if err := d.Close(); err != nil {
		t.Errorf("%v", err)
	}
	for i, want := range []*fd.FD{b, a} {
		if failed[i] != nil {
			t.Errorf("%s: %v", entries[i].Name, failed[i])
			continue
		}
		own(t, files[i].FD)
		if same, err := want.SameOpenFile(files[i].FD); !same || err != nil {
			t.Errorf("%s is not what was stored: %v", entries[i].Name, err)
		}
	}
}

func sessions(t conform.T, s Subject) {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	const shown = "storetest of a name with 38 bytes, yes"
	longest := shown + strings.Repeat("!", 63-len(shown))
	s.store(t, "short", s.session(ctx, t, shown))
	s.store(t, "long", s.session(ctx, t, longest))
	s.store(t, "a", memfd(t))
	entries := s.has(t, "a", "long", "short")
	if e := entries[2]; !e.IsSession(shown) || !e.Session() {
		t.Errorf("the entry is %+v, and not known to be the session", e)
	}
	if e := entries[1]; !e.Session() || e.Path != "" && !e.IsSession(longest) {
		t.Errorf("the entry is %+v, and not known to be a session", e)
	}
	t.Logf("a name of 63 bytes is shown: %v", entries[1].Path != "")
	stored, err := s.PID1.Stored(ctx, []string{s.Unit})
	if err != nil || stored[s.Unit] != 1 {
		t.Errorf("%d fds are stored besides the sessions: %v, want 1", stored[s.Unit], err)
	}
}

// session makes a session, which the end of the check closes.
func (s Subject) session(ctx context.Context, t conform.T, name string) *fd.FD {
	t.Helper()
	device, err := session.OpenWait(ctx, s.Kernel, session.Path)
	if err != nil {
		t.Fatalf("%v", err)
	}
	of, err := device.Create(name)
	if closed := device.Close(); err != nil || closed != nil {
		t.Fatalf("%v, %v", err, closed)
	}
	return own(t, of.FD())
}

// store stores f; the end of the check removes it.
func (s Subject) store(t conform.T, name string, f *fd.FD) {
	t.Helper()
	t.Cleanup(func() { s.remove(t, name) })
	if err := s.Keeper.Store(name, f); err != nil {
		t.Fatalf("store %s: %v", name, err)
	}
}

func (s Subject) remove(t conform.T, name string) {
	t.Helper()
	if err := s.Keeper.Remove(name); err != nil {
		t.Errorf("remove %s: %v", name, err)
	}
}

// has returns the entries, whose names are to be these.
func (s Subject) has(t conform.T, want ...string) []units.Entry {
	t.Helper()
	if err := s.Keeper.Barrier(); err != nil {
		t.Fatalf("%v", err)
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	entries, err := s.PID1.Entries(ctx, s.Unit)
	if err != nil {
		t.Fatalf("%v", err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q are in the store, want %q", got, want)
	}
	return entries
}

// memfd returns an empty memfd, which the end of the check closes.
func memfd(t conform.T) *fd.FD {
	t.Helper()
	raw, err := unix.MemfdCreate("storetest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return own(t, fd.New(raw))
}

// again opens the file of f once more.
func again(t conform.T, f *fd.FD) (opened *fd.FD) {
	t.Helper()
	if err := f.Do(func(raw int) error {
		raw, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			opened = own(t, fd.New(raw))
		}
		return err
	}); err != nil {
		t.Fatalf("%v", err)
	}
	return opened
}

// own makes the end of the check close f.
func own(t conform.T, f *fd.FD) *fd.FD {
	t.Cleanup(func() { _ = f.Close() })
	return f
}
