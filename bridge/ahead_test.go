// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units"
)

// What was duplicated ahead is carried as it is in the end, and is not looked for in
// PID 1 again.
func TestWhatWasDuplicatedAheadIsCarriedAsItIs(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "before")
	w.put("a.service", "y", "other")
	w.look("a.service")
	w.blind = errors.New("not to be asked")
	err := w.file("a.service", "x").Do(func(raw int) error {
		_, err := unix.Pwrite(raw, []byte("what others write later"), 0)
		_, failed := unix.Seek(raw, 4, unix.SEEK_SET)
		return errors.Join(err, failed)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := w.contents("a.service")
	preserved := w.preserve()
	if bytes := preserved.Index.Units[0].Bytes; bytes != int64(len("what others write later")+len("other")) {
		t.Errorf("%d bytes are carried", bytes)
	}
	w.blind = nil
	w.kexec(preserved)
	_, socket, _ := w.serve()
	if _, err := w.deliver(socket, "a.service"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, w.contents("a.service")); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
}

// What was preserved before it is known that a store has changed is not carried, nor what
// was prepared then.
func TestWhatHasChangedSinceItWasSeenIsPreservedAnew(t *testing.T) {
	for _, prepared := range []bool{false, true} {
		w := newWorld(t)
		w.add("early.service", "yes")
		w.put("early.service", "x", "old")
		seen, err := w.store("early.service")
		if err != nil {
			t.Fatal(err)
		}
		p := w.preserver()
		p.Partly = true // which is no reason to carry it
		if prepared {
			if prepared, err := p.Prepare(t.Context()); prepared.FDs != 1 || err != nil {
				t.Fatalf("prepared: %+v, %v", prepared, err)
			}
		}
		w.look("early.service")
		w.stale = []*units.Store{&seen}
		w.empty("early.service")
		w.put("early.service", "y", "new")
		want := w.contents("early.service")
		preserved, err := p.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.kexec(preserved)
		_, socket, _ := w.serve()
		if _, err := w.deliver(socket, "early.service"); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, w.contents("early.service")); diff != "" {
			t.Errorf("prepared: %v; the store (-want +got):\n%s", prepared, diff)
		}
		if !strings.Contains(w.logged(), "early.service: the store has changed") {
			t.Errorf("prepared: %v; logged: %s", prepared, w.logged())
		}
	}
}

// When PID 1 does not say whether a store is as it was seen, that is carried, and PID 1,
// which may have more, is left what it has.
func TestWhatMayHaveChangedSinceItWasSeenIsCarriedAndLeft(t *testing.T) {
	for _, err := range []error{nil, units.ErrUnsure} {
		w := newWorld(t)
		w.carries = true
		w.add("a.service", "yes")
		w.put("a.service", "x", "X")
		w.look("a.service")
		w.unsure = err
		p := w.preserver()
		p.Partly = true
		preserved, failed := p.Run(t.Context())
		if failed != nil {
			t.Fatal(failed)
		}
		if n := preserved.Index.Units[0].Entries; n != 1 {
			t.Errorf("%v: %d fds are carried", err, n)
		}
		if w.busy() != (err == nil) || slices.Contains(w.emptied, "a.service") {
			t.Errorf("%v: busy: %v, emptied: %v", err, w.busy(), w.emptied)
		}
		if told := strings.Contains(w.logged(), units.ErrUnsure.Error()); told != (err != nil) {
			t.Errorf("%v: logged: %s", err, w.logged())
		}
		_ = preserved.Close()
	}
}

// The descriptors of what is not carried are closed, which TestMain looks at.
func TestWhatWasDuplicatedAheadInVainIsClosed(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.look("a.service")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	preserved, err := w.preserver().Run(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run when its time is over: %v", err)
	}
	if preserved != nil {
		_ = preserved.Close()
	}
}
