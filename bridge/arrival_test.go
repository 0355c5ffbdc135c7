// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
)

func TestALiveUpdateThatDidNotArriveIsReportedOnce(t *testing.T) {
	const here, before = "00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000001"
	at := time.Date(2026, 11, 21, 3, 0, 0, 123456789, time.UTC)
	index := func(bootID string) []byte {
		x := &kho.Index{
			Origin: kho.Origin{BootID: bootID, Kernel: "7.2.12", Time: at},
			Units: []kho.IndexUnit{
				{Unit: "a.service", Sessions: []string{"fdbridge.a.service"}, Entries: 3},
				{Unit: "b.service", Lost: []kho.LostEntry{{Name: "p", Type: "pipe", Reason: "no"}}},
			},
			Services: []kho.Service{kho.NewService("vm.service", "guest", kho.Identity{})},
			Messages: []string{"it is late"},
		}
		data, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	unanswered := errors.New("fdbridged does not answer")
	arrived := wire.Handover{BootID: before, Time: at}
	later := wire.Handover{BootID: before, Time: at.Add(time.Second)}
	for name, test := range map[string]struct {
		record  []byte
		without bool // live update
		status  *wire.Status
		err     error // of Status, and of Review unless it need not know
		lost    bool
		says    string
	}{
		"nothing was begun":              {},
		"called off":                     {record: index(here), err: unanswered},
		"arrived":                        {record: index(before), status: &wire.Status{Handover: &arrived}},
		"nothing arrived":                {record: index(before), status: &wire.Status{}, lost: true, says: "a.service: 3 fds are lost"},
		"what was not carried anyway":    {record: index(before), status: &wire.Status{}, lost: true, says: "b.service: The fd \"p\" (pipe) was lost with the live update: no"},
		"a message did not arrive":       {record: index(before), status: &wire.Status{}, lost: true, says: "<4>Before the live update: it is late"},
		"a session did not arrive":       {record: index(before), status: &wire.Status{}, lost: true, says: "vm.service: Its session \"guest\" is lost"},
		"another one arrived":            {record: index(before), status: &wire.Status{Handover: &later}, lost: true, says: "4 fds of 2 units are lost: a.service (3), b.service (1)"},
		"a kernel without live update":   {record: index(before), without: true, err: unanswered, lost: true, says: "a.service: 3 fds are lost"},
		"the power was cut in the midst": {record: index(before)[:40], says: "not known"},
		"fdbridged cannot be asked":      {record: index(before), err: unanswered},
		"fdbridged does not know yet":    {record: index(before), status: &wire.Status{Unknown: "busy"}, err: bridge.ErrUnsettled},
		"fdbridged does not say":         {record: index(before), err: bridge.ErrUnsettled},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			dir := t.TempDir()
			a := bridge.Arrival{
				Record: filepath.Join(dir, "record"), Lost: filepath.Join(dir, "run", "lost"), BootID: here, Device: dir,
				Status: func() (*wire.Status, error) {
					if errors.Is(test.err, unanswered) {
						return nil, test.err
					}
					return test.status, nil
				},
				Log: journal.To(&log),
			}
			if test.without {
				a.Device = filepath.Join(dir, "none")
			}
			if test.record != nil {
				if err := os.WriteFile(a.Record, test.record, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			kept := strings.HasPrefix(name, "fdbridged ")
			if err := a.Review(); kept != (err != nil) || kept && !errors.Is(err, test.err) {
				t.Errorf("Review: %v", err)
			}
			if _, err := os.Stat(a.Record); kept != (err == nil) {
				t.Errorf("the record: %v", err)
			}
			if _, err := os.Stat(a.Lost); test.lost != (err == nil) || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what is lost: %v", err)
			}
			if said := log.String(); !strings.Contains(said, test.says) || test.says == "" && said != "" {
				t.Errorf("the log says %q, want %q in it", said, test.says)
			}
		})
	}
}

func TestARecordIsTheIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	x := &kho.Index{Origin: kho.Origin{BootID: "b", Kernel: "k", Time: time.Now().UTC()}}
	for range 2 { // the second time, over the first
		if err := bridge.Record(path, x); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := kho.ParseIndex(data); err != nil || !got.Origin.Time.Equal(x.Origin.Time) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := bridge.Record(filepath.Join(path, "no"), x); err == nil {
		t.Error("a directory that is not there is no error")
	}
}

func TestWhatIsPreservedIsRecordedIfItCanBe(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.unrecorded = errors.New("the disk is full")
	if preserved := w.preserve(); w.recorded != preserved.Index || preserved.Index.Units[0].Entries != 1 {
		t.Errorf("recorded: %+v", w.recorded)
	}
	if said := w.logged(); !strings.Contains(said, "<4>Should the live update not arrive, the next boot cannot say what was lost: the disk is full") {
		t.Errorf("the log does not say so: %s", said)
	}
}
