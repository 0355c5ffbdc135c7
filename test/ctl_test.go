// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"encoding/json"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// What fdbridgectl shows of fds before an update and after it, while they are
// held and when they are delivered.
func shown() scenario {
	units := map[string]string{"shown.service": byHand(optIn, "sealed,memfd,4096,7,6", "plain,memfd,100", "p,pipe")}
	return scenario{name: "fdbridgectl shows what there is", units: units, before: func(b *bed) func(*bed) {
		b.says("nobody", "setpriv --reuid=65534 --clear-groups fdbridgectl inspect fdbridge 2>&1 || true", "only root may ask fdbridged")
		b.says("nobody", "setpriv --reuid=65534 --clear-groups fdbridgectl features", "Live update: on", "permission denied")
		before := b.show("shown")
		if len(before) != 3 {
			b.Fatalf("three fds are stored, and shown are %+v", before)
		}
		b.features(0)
		b.sh("systemctl stop shown.service")
		return func(b *bed) {
			shownHeld(b, before)
			shownDelivered(b)
		}
	}}
}

// shownHeld looks at what is held and was shown before the update.
func shownHeld(b *bed, before []wire.Entry) {
	b.Helper()
	held := b.show("shown.service")
	for i := range held {
		if e := &held[i]; e.Type == "pipe" {
			if e.Place != wire.PlaceLost || e.Reason == "" {
				b.Errorf("the pipe is %+v", e)
			}
			e.Reason = ""
		} else if e.Place != wire.PlaceHeld || e.Session != "fdbridge.shown.service" || e.Token == 0 {
			b.Errorf("the memfd is %+v", e)
		}
		held[i].Kind, held[i].Session, held[i].Token, held[i].Place = "", "", 0, wire.PlaceStored
	}
	if diff := cmp.Diff(before, held); diff != "" {
		b.Errorf("held are other fds than were stored (-want +got):\n%s", diff)
	}
	b.says("the index", "fdbridgectl inspect fdbridge", "fdbridge.shown.service")
	b.says("the manifest", "fdbridgectl inspect fdbridge.shown.service", "Manifest of: shown.service", "Lost: shown.service: fd \"p\" (pipe)")
	b.says("the status", "fdbridgectl status --full", "Replaced: the kernel, in about", "Taken over: in", "shown.service 2 4K held", "Lost: shown.service")
	b.says("the unit's", "fdbridgectl status shown", "State: held", "Lost: 1 fd")
	b.features(1)
}

// shownDelivered looks at what was held when it is delivered.
func shownDelivered(b *bed) {
	b.Helper()
	b.sh("systemctl start shown.service")
	b.says("the status", "fdbridgectl status --full", "Delivered: to ", "shown.service 2 4K in ")
	const lost, delivered = "86fda19c240843d1ad6167751b0dd165", "1188f8f918504418a95f88f8766baa9c"
	b.sh("journalctl --sync")
	b.says("what was lost", "journalctl -q -b -o cat MESSAGE_ID="+lost+" UNIT=shown.service FDBRIDGE_FD=p", `shown.service: The fd "p" (pipe) was lost`)
	b.says("the unit's log", "journalctl -q -b -u shown.service -x MESSAGE_ID="+delivered, "shown.service: Delivered 2 fds", "in its fd store again")
	b.says("the unit's", "fdbridgectl status shown", "State: opted-in", "by the last live update, delivered in")
	b.says("what is gone", "fdbridgectl inspect fdbridge.shown.service 2>&1 || true", "no manifest is held")
	// In tenths; what is above needs what the service does, as its file says.
	for unit, exposure := range map[string]int{"fdbridged": 40, "fdbridge-preserve": 75, "fdbridge-arrival": 15, "fdbridge-rollback": 30, "fdbridge-bus": 20} {
		b.sh("systemd-analyze security --no-pager --threshold=%d %s.service >/run/exposed || { cat /run/exposed; exit 1; }", exposure, unit)
	}
	b.says("completion", "fdbridgectl __complete show ''", "shown.service")
}

// show returns what fdbridgectl shows of a unit's fds.
func (b *bed) show(unit string) []wire.Entry {
	b.Helper()
	var shown struct {
		Entries  []wire.Entry
		Problems []string
	}
	if err := json.Unmarshal([]byte(b.sh("fdbridgectl show --json %s", unit)), &shown); err != nil || len(shown.Problems) > 0 {
		b.Fatalf("%v, problems %q", err, shown.Problems)
	}
	return shown.Entries
}

// features checks what fdbridgectl features says after some live updates.
func (b *bed) features(updates uint64) {
	b.Helper()
	var f check.Features
	if err := json.Unmarshal([]byte(b.sh("fdbridgectl features --json")), &f); err != nil {
		b.Fatal(err)
	}
	k := f.Kernel
	if k.LiveUpdate == nil || !*k.LiveUpdate || k.LiveUpdateNumber == nil || *k.LiveUpdateNumber != updates ||
		k.Seals == nil || !*k.Seals || f.Systemd.Carries == nil || *f.Systemd.Carries || f.Directives.By != "fdbridge" {
		text, _ := json.Marshal(f)
		b.Errorf("the features are %s", text)
	}
}

// says checks that a script prints all of parts, whatever space is between words.
func (b *bed) says(what, script string, parts ...string) {
	b.Helper()
	got := b.sh("%s", script)
	words := strings.Join(strings.Fields(got), " ")
	for _, part := range parts {
		if !strings.Contains(words, part) {
			b.Errorf("%s: no %q in:\n%s", what, part, got)
		}
	}
}
