// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

// show returns what an fdbridged says of a unit's fds.
func show(t *testing.T, socket, unit string) (entries []wire.Entry, problems []string) {
	t.Helper()
	shown, err := wire.Show(socket, unit)
	if err != nil {
		t.Error(err)
	}
	return shown.Entries, shown.Problems
}

// How long PID 1 takes is not the client's to answer for.
func TestAnAnswerForWhichPID1TakesLongArrives(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.impatient = time.Second
	w.changed = func() { time.Sleep(w.impatient * 3 / 2) }
	_, socket, _ := w.serve()
	if entries, problems := show(t, socket, "a.service"); len(entries) != 1 || len(problems) > 0 {
		t.Errorf("shown are %+v, problems %q", entries, problems)
	}
}

// fail makes PID 1 answer everything with an error.
func (m *manager) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func number(n int64) *int64 { return &n }

func TestShowTellsWhereEachFDIs(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "second", "twelve bytes")
	w.putPipe("a.service", "pipe")
	w.putMemfd([]string{"a.service"}, "sealed", "S", unix.O_RDWR, unix.MFD_NOEXEC_SEAL)
	var moved []int64 // the position that each memfd has
	for _, p := range w.passed("a.service") {
		_ = p.FD.Do(func(raw int) error {
			position, _ := unix.Seek(raw, 0, unix.SEEK_CUR)
			moved = append(moved, position)
			return nil
		})
		_ = p.FD.Close()
	}
	in := func(where string) []wire.Entry {
		return []wire.Entry{
			{Name: "sealed", Place: where, Type: "memfd", Size: number(1), Position: number(moved[0]), Seals: []string{"exec"}},
			{Name: "pipe", Place: where, Type: "pipe"},
			{Name: "second", Place: where, Type: "memfd", Size: number(12), Position: number(moved[2])},
		}
	}
	ignore := cmpopts.IgnoreFields(wire.Entry{}, "Flags")
	_, socket, stop := w.serve()
	stored, problems := show(t, socket, "a.service")
	if diff := cmp.Diff(in(wire.PlaceStored), stored, ignore); diff != "" || len(problems) > 0 {
		t.Errorf("stored (-want +got):\n%s\nproblems %q", diff, problems)
	}
	stop()

	w.kexec(w.preserve())
	_, socket, _ = w.serve()
	want := in(wire.PlaceHeld)
	for i, token := range []uint64{1, 0, 2} {
		want[i].Kind, want[i].Session, want[i].Token = "luo", "fdbridge.a.service", token
	}
	want[1] = wire.Entry{Name: "pipe", Place: wire.PlaceLost, Type: "pipe", Kind: "lost", Reason: want[1].Reason}
	held, problems := show(t, socket, "a.service")
	if diff := cmp.Diff(want, held, ignore, cmpopts.IgnoreFields(wire.Entry{}, "Reason")); diff != "" || len(problems) > 0 {
		t.Errorf("held (-want +got):\n%s\nproblems %q", diff, problems)
	}
	if len(held) == 3 && held[1].Reason == "" {
		t.Error("the lost fd has no reason")
	}
	if _, err := w.deliver(socket, "a.service"); err != nil {
		t.Fatal(err)
	}
	got, _ := show(t, socket, "a.service")
	want = []wire.Entry{in(wire.PlaceStored)[0], in(wire.PlaceStored)[2]}
	if diff := cmp.Diff(want, got, ignore); diff != "" {
		t.Errorf("stored after delivery (-want +got):\n%s", diff)
	}
}

func TestShowSaysWhatCannotBeSeen(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.blind = errors.New("no pidfd")
	_, socket, _ := w.serve()
	got, _ := show(t, socket, "a.service")
	want := []wire.Entry{{Name: "x", Place: wire.PlaceStored, Type: "memfd", Reason: w.blind.Error()}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(wire.Entry{}, "Flags")); diff != "" {
		t.Errorf("without a duplicator (-want +got):\n%s", diff)
	}
	w.fail(errors.New("the unit is masked"))
	got, problems := show(t, socket, "a.service")
	if len(got) > 0 || !cmp.Equal(problems, []string{"a.service: the unit is masked"}) {
		t.Errorf("of a masked unit there are %+v, and problems %q", got, problems)
	}
	w.fail(fmt.Errorf("%w: it is busy", units.ErrManager))
	_, err := wire.Show(socket, "a.service")
	if !errors.Is(err, wire.ErrRefused) || !strings.Contains(err.Error(), "it is busy") {
		t.Errorf("Show without PID 1: %v", err)
	}
}

// inspected returns the units of the manifests in a session.
func inspected(socket, session string) (units []string, err error) {
	err = wire.Inspect(socket, session, func(f *fd.FD) error {
		data, err := kho.Contents(f, 1<<20)
		if err != nil {
			return err
		}
		m, err := kho.ParseManifest(data)
		if err == nil {
			units = append(units, m.Unit)
		}
		return err
	})
	return units, err
}

func TestInspectGivesTheManifestsOfASession(t *testing.T) {
	w := newWorld(t)
	w.kernel.MaxFiles = 3
	w.add("a.service", "yes")
	for _, name := range []string{"1", "2", "3", "4"} {
		w.put("a.service", name, name)
	}
	w.kexec(w.preserve())
	_, socket, _ := w.serve()
	before := len(fd.Open())
	index := 0
	err := wire.Inspect(socket, kho.IndexSession, func(f *fd.FD) error {
		x, err := kho.ReadIndex(f)
		if err == nil {
			index = len(x.Units)
		}
		return err
	})
	if err != nil || index != 1 {
		t.Errorf("the index: %d units, %v", index, err)
	}
	manifest, other := "fdbridge.a.service#2", "fdbridge.a.service"
	if units, err := inspected(socket, manifest); err != nil || !cmp.Equal(units, []string{"a.service"}) {
		t.Errorf("Inspect: %q, %v", units, err)
	}
	for session, says := range map[string]string{
		other:                "a.service in it, whose manifest is in the session " + manifest,
		"fdbridge.b.service": "no manifest is held",
	} {
		if _, err := inspected(socket, session); !errors.Is(err, wire.ErrRefused) || !strings.Contains(err.Error(), says) {
			t.Errorf("Inspect %s: %v, want that it says %q", session, err, says)
		}
	}
	if after := len(fd.Open()); after > before {
		t.Errorf("%d descriptors are owned, %d before", after, before)
	}
}

func TestStatusTellsWhatWasCarriedForWhom(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "b.service", "c.service"} {
		w.add(unit, "yes")
	}
	w.put("a.service", "x", "12345")
	w.put("a.service", "y", "123")
	w.put("b.service", "x", "1")
	w.putPipe("c.service", "p")
	w.kexec(w.preserve())
	_, socket, _ := w.serve()
	if _, err := w.deliver(socket, "a.service"); err != nil {
		t.Fatal(err)
	}
	var got []wire.Carried
	var handover *wire.Handover
	err := wire.Ask(socket, wire.OpStatus, func(a *wire.Answer) {
		if a.Carried != nil {
			got = append(got, *a.Carried)
		}
		if a.Status != nil {
			handover = a.Status.Handover
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []wire.Carried{{Unit: "a.service", Entries: 2, Bytes: 8}, {Unit: "b.service", Entries: 1, Bytes: 1, Held: true}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(wire.Carried{}, "DeliverUS")); diff != "" {
		t.Errorf("carried (-want +got):\n%s", diff)
	}
	if len(got) == 2 && (got[0].DeliverUS == 0 || got[1].DeliverUS != 0) {
		t.Errorf("the delivery to a.service took %d µs, and that to b.service, which was none, %d", got[0].DeliverUS, got[1].DeliverUS)
	}
	if handover == nil || handover.RestoreUS == 0 || handover.ReplaceUS == 0 {
		t.Errorf("the steps took no time: %+v", handover)
	}
}
