// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/bus"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// fdbridged answers every request with the answers of its operation, and hangs up.
func fdbridged(t *testing.T, answers map[string][]wire.Answer) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	listener, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			var conn *wire.Conn
			if conn, err = listener.Accept(); err != nil {
				break
			}
			var request wire.Request
			_, err = conn.Receive(&request)
			for _, a := range answers[request.Op+request.Unit] {
				err = errors.Join(err, conn.Send(a, nil))
			}
			err = errors.Join(err, conn.Close())
		}
		done <- err
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("the fdbridged: %v", err)
		}
	})
	return socket
}

func TestTheLocalBackendAsksFdbridged(t *testing.T) {
	end := wire.Answer{End: true}
	unit := wire.Unit{Unit: "a.service", State: wire.StateHeld, Held: 1}
	status := wire.Status{Version: "x", Held: 1}
	carried, lost := wire.Carried{Unit: "a.service", Entries: 1}, wire.Lost{Unit: "a.service", Name: "l"}
	entry := wire.Entry{Place: wire.PlaceHeld, Name: "n"}
	local := bus.Local{Socket: fdbridged(t, map[string][]wire.Answer{
		wire.OpList:                    {{Unit: &unit}, end},
		wire.OpStatus:                  {{Status: &status}, {Carried: &carried}, {Lost: &lost}, {Problem: "p"}, end},
		wire.OpShow + "a.service":      {{Entry: &entry}, {Problem: "q"}, end},
		wire.OpDeliverAs + "a.service": {{Assigned: &wire.Assigned{Unit: "a.service", As: "b.service"}}, end},
		wire.OpDeliverAs + "b.service": {{Error: "no"}},
		wire.OpDrop + "a.service":      {end},
		wire.OpDrop + "b.service":      {{Error: "no"}},
		wire.OpWatch:                   {{}, {Problem: "p"}},
	})}
	units, err := local.Units(t.Context())
	if diff := cmp.Diff([]wire.Unit{unit}, units); err != nil || diff != "" {
		t.Errorf("Units: %v (-want +got):\n%s", err, diff)
	}
	gotStatus, err := local.Status(t.Context())
	if diff := cmp.Diff(status, gotStatus); err != nil || diff != "" {
		t.Errorf("Status: %v (-want +got):\n%s", err, diff)
	}
	report, err := local.Report(t.Context())
	wantReport := &wire.Report{Status: status, Carried: []wire.Carried{carried}, Lost: []wire.Lost{lost}, Problems: []string{"p"}}
	if diff := cmp.Diff(wantReport, report); err != nil || diff != "" {
		t.Errorf("Report: %v (-want +got):\n%s", err, diff)
	}
	shown, err := local.Show(t.Context(), "a.service")
	wantShown := &wire.Shown{Unit: "a.service", Entries: []wire.Entry{entry}, Problems: []string{"q"}}
	if diff := cmp.Diff(wantShown, shown); err != nil || diff != "" {
		t.Errorf("Show: %v (-want +got):\n%s", err, diff)
	}
	if err := local.Drop(t.Context(), "a.service"); err != nil {
		t.Errorf("Drop: %v", err)
	}
	if err := local.Drop(t.Context(), "b.service"); !errors.Is(err, wire.ErrRefused) {
		t.Errorf("Drop of what is not held: %v", err)
	}
	if err := local.Deliver(t.Context(), "a.service", "b.service"); err != nil {
		t.Errorf("Deliver: %v", err)
	}
	if err := local.Deliver(t.Context(), "b.service", "a.service"); !errors.Is(err, wire.ErrRefused) {
		t.Errorf("Deliver what is not held: %v", err)
	}
	told := 0
	if err := local.Watch(t.Context(), func() { told++ }); !errors.Is(err, bus.ErrNotRunning) || told != 2 {
		t.Errorf("Watch has told %d times: %v", told, err)
	}
}

func TestTheLocalBackendKnowsWhenThereIsNoFdbridged(t *testing.T) {
	local := bus.Local{Socket: filepath.Join(t.TempDir(), "socket")}
	for when, socket := range map[string]string{"there is no socket": local.Socket, "it hangs up": fdbridged(t, nil)} {
		local.Socket = socket
		_, units := local.Units(t.Context())
		_, status := local.Status(t.Context())
		_, report := local.Report(t.Context())
		_, shown := local.Show(t.Context(), "a.service")
		drop, watch := local.Drop(t.Context(), "a.service"), local.Watch(t.Context(), func() {})
		for what, err := range map[string]error{"Units": units, "Status": status, "Report": report, "Show": shown, "Drop": drop, "Watch": watch} {
			if !errors.Is(err, bus.ErrNotRunning) {
				t.Errorf("%s when %s: %v", what, when, err)
			}
		}
	}
}

func TestTheLocalBackendChecksByTheCommand(t *testing.T) {
	ctl := filepath.Join(t.TempDir(), "fdbridgectl")
	check := func(ctx context.Context, script string) (*bus.Verdict, error) {
		t.Helper()
		if err := os.WriteFile(ctl, []byte("#!/bin/sh\n[ \"$*\" = 'check --json' ] || exit 3\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return bus.Local{Ctl: ctl}.Check(ctx)
	}
	want := &bus.Verdict{Outcome: "lossy", CalledOff: true, Problems: []bus.Problem{
		{Outcome: "lossy", Unit: "a.service", FDs: []string{"x"}, Type: "pipe", Message: "m", Remedy: "r"},
	}}
	const found = `echo '{"outcome":"lossy","called_off":true,"units":[],"problems":[` +
		`{"outcome":"lossy","unit":"a.service","fds":["x"],"type":"pipe","message":"m","remedy":"r"}]}'`
	for _, status := range []string{"; exit 0", "; exit 1", "; exit 2"} {
		got, err := check(t.Context(), found+status)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("Check%s: %v (-want +got):\n%s", status, err, diff)
		}
	}
	for script, says := range map[string]string{
		"echo 'fdbridgectl: PID 1 is away' >&2; exit 2": "PID 1 is away",
		"echo nonsense": "no verdict",
		"exit 1":        "no verdict",
	} {
		if got, err := check(t.Context(), script); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Check with %q: %+v, %v", script, got, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if got, err := check(ctx, found); !errors.Is(err, context.Canceled) {
		t.Errorf("Check that is broken off: %+v, %v", got, err)
	}
	if _, err := (bus.Local{Ctl: ctl + "x"}).Check(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check without the command: %v", err)
	}
}
