// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// fault is a scenario that begins right after the live update that all share.
type fault struct {
	name  string
	units map[string]string // t-NAME.service; none is started at boot
	after func(b *bed, truth map[string][]found)
}

// TestFaultsOfADelivery kills, holds and restarts whoever has a part in a
// delivery: at each of its steps in "make soak", at some of them in "make test".
func TestFaultsOfADelivery(t *testing.T) {
	b := boot(t, common())
	b.serveUnderAtstep()
	b.injectUnderAtstep("t-.service")
	faults := []fault{restoreKilled(), serveKilled(), injectKilled(), injectUnheard(), startedTwice(), mainFails(), stoppedMeanwhile(), pid1Again()}
	files := map[string]string{}
	for _, f := range faults {
		maps.Copy(files, f.units)
	}
	b.units(files)
	truth := b.restarted(slices.Sorted(maps.Keys(files))...)
	b.sh("touch /etc/fail-once")
	b.steps(serveSteps, restoreSteps(len(truth))...)
	b.kexec()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { f.after(b.in(t), truth) })
	}
	b.noProblems()
	b.off()
}

// restoreSteps returns lines for steps, so that one fdbridged is killed at its
// first step, the next at its second, and so on; but for most of those steps in
// which one session after the other is retrieved. Unless each counts, it is one of a
// kind.
func restoreSteps(sessions int) (lines []string) {
	const first, last = 6, 10
	if stride > 1 {
		return []string{"1 kill", "RETRIEVE_FD kill", fmt.Sprint(first, " kill"), "BARRIER=1 kill", "READY=1 kill"}
	}
	for i := range sessions + last {
		if i < first || i > sessions-2 {
			lines = append(lines, fmt.Sprint(i+1, " kill"))
		}
	}
	return lines
}

var twoFiles = byHand(optIn, "a,memfd,4096,1", "b,memfd,8192,2,0x2")

func each(units []string, text string) map[string]string {
	files := map[string]string{}
	for _, unit := range units {
		files[unit] = text
	}
	return files
}

// fdbridged is killed while it takes over what was handed over: the first at its
// first step, the next at its second, until one comes through.
func restoreKilled() fault {
	const late = "t-late.service"
	files := map[string]string{
		"t-early.service": byHand(optIn, "a,memfd,4096,1", "b,memfd,8192,2", "c,memfd,0"),
		late:              byHand(optIn, "a,memfd,5000,1,0x2", "b,memfd,8192,2", "c,memfd,65536,3"),
	}
	return fault{"fdbridged is killed while it restores", files, func(b *bed, truth map[string][]found) {
		b.until("systemctl -q is-active fdbridged.service")
		b.hit(b.stepped(serveSteps), "RETRIEVE_SESSION", "RETRIEVE_FD", "BARRIER=1", "READY=1")
		b.steps(serveSteps)
		b.sh("systemctl restart fdbridged.service")
		b.held(truth, slices.Collect(maps.Keys(truth))...)
		// What asks fdbridged about the update, and could not before, has its answer
		// and asks no more: it would be among the steps that are counted later.
		b.until("! test -e /var/lib/fdbridge/index")
		b.sh("systemctl start t-early.service")
		b.same(of(truth, "t-early.service"))
		b.held(truth, late)
		b.sh("systemctl start %s", late)
		b.same(of(truth, late))
	}}
}

// fdbridged is killed at each step of a delivery, which the next one brings to
// its end.
func serveKilled() fault {
	units := numbered("t-serve", 9/stride)
	return fault{"fdbridged is killed while it delivers", each(units, twoFiles), func(b *bed, truth map[string][]found) {
		var hits, started []string
		for i, unit := range units {
			b.steps(serveSteps, fmt.Sprintf("+%d kill", i*stride+1))
			b.sh("systemctl restart fdbridged.service; systemctl start %s", unit)
			b.same(of(truth, unit))
			started = append(started, unit)
			hits = append(hits, b.stepped(serveSteps)...)
			if len(hits) == i {
				break
			}
		}
		kinds := []string{"FDSTORE=1 FDPOLL=0 FDNAME=b-", `{"unit":`, "FINISH", "FDSTOREREMOVE=1 FDNAME=b-", "{"}
		if stride > 1 {
			kinds = nil
		}
		b.hit(hits, kinds...)
		b.steps(serveSteps)
		b.sh("systemctl restart fdbridged.service")
		b.complete(truth, started...)
	}}
}

// fdbridge-inject is killed before, between and after its messages: at each step, or at
// its first and in the middle. The unit starts with what had arrived; the rest is held,
// and not mixed with what the unit has then.
func injectKilled() fault {
	steps := []int{1, inTheMiddle[0]}
	kinds := []string{"EXTEND_TIMEOUT_USEC=", "FDSTORE=1"}
	if thorough {
		steps = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12} // more than it has
		kinds = append(kinds, `{"op":"deliver"`, "RETRIEVE_FD", "BARRIER=1", `{"op":"delivered"`, "exit")
	}
	units := numbered("t-inject", len(steps))
	// It must not store anything by itself when it finds nothing.
	files := each(units, byHand(optIn, "-on-stop", "a,memfd,4096,1", "b,memfd,8192,2,0x2"))
	return fault{"fdbridge-inject is killed", files, func(b *bed, truth map[string][]found) {
		var hits []string
		partly := 0
		for i, unit := range units {
			b.steps(injectSteps, fmt.Sprint(steps[i], " kill"))
			b.sh("systemctl start %s", unit)
			hits = append(hits, b.stepped(injectSteps)...)
			b.sh("rm %s/*", injectSteps)
			if got := b.completed(unit, truth[unit]); got > 0 && got < len(truth[unit]) {
				partly++
			}
			if len(hits) == i {
				break
			}
		}
		b.hit(hits, kinds...)
		if partly == 0 {
			b.Error("no unit was started with a part of its fds")
		}
	}}
}

// fdbridge-inject is killed before it asks for anything, and the unit stores other fds.
func injectUnheard() fault {
	const unit = "t-unheard.service"
	return fault{"fdbridge-inject is killed before it asks", each([]string{unit}, twoFiles), func(b *bed, truth map[string][]found) {
		b.steps(injectSteps, "1 kill")
		b.sh("systemctl start %s", unit)
		if hits := b.stepped(injectSteps); len(hits) != 1 {
			b.Fatalf("fdbridge-inject was killed at %q, want one step", hits)
		}
		b.sh("rm %s/*", injectSteps)
		if got := b.report(unit); len(got) != 0 {
			b.Errorf("%s was started with %+v, want no fds", unit, got)
		}
		b.killed(unit)
		b.sh("systemctl start %s", unit)
		if got := b.report(unit); len(got) != len(truth[unit]) {
			b.Errorf("%s finds %+v, want the %d fds that it has stored", unit, got, len(truth[unit]))
		}
		if u := b.list()[unit]; u.State != wire.StateHeld || u.Held != len(truth[unit]) {
			b.Errorf("%s is listed as %+v", unit, u)
		}
		b.advised(unit)
		b.same(of(truth, unit))
	}}
}

// advised does what the log of a unit says is to be done so that it gets what is held for it.
func (b *bed) advised(unit string) {
	b.Helper()
	advice, decide := "systemctl clean --what=fdstore "+unit, fmt.Sprintf("fdbridgectl deliver %[1]s --as %[1]s", unit)
	log := b.journal("-u %s", unit)
	if !strings.Contains(log, advice) {
		b.Errorf("the log of %s does not say %q:\n%s", unit, advice, log)
	}
	if !strings.Contains(log, decide) {
		decide = "true"
	}
	b.sh("systemctl stop %[1]s; %[2]s; %[3]s; systemctl start %[1]s", unit, advice, decide)
}

// completed looks at a unit whose fdbridge-inject was killed, and does what is
// to be done so that it gets what it has not got. It returns how many fds it had got.
func (b *bed) completed(unit string, want []found) int {
	b.Helper()
	got := b.report(unit)
	// What is delivered last stands in front.
	if diff := cmp.Diff(want[len(want)-min(len(got), len(want)):], got, cmpopts.IgnoreFields(found{}, "Inode"), cmpopts.EquateEmpty()); diff != "" {
		b.Errorf("%s was started with other fds than its last %d (-want +got):\n%s", unit, len(got), diff)
	}
	u := b.list()[unit]
	if held := u.State == wire.StateHeld && u.Held == len(want); !held && len(got) < len(want) {
		b.Errorf("%s has got %d fds, and is listed as %+v", unit, len(got), u)
	}
	b.killed(unit)
	b.sh("systemctl start %s", unit)
	if b.list()[unit].Held > 0 {
		if diff := cmp.Diff(got, b.report(unit), cmpopts.EquateEmpty()); diff != "" {
			b.Errorf("%s finds other fds in its next start (-before +now):\n%s", unit, diff)
		}
		b.advised(unit)
	}
	b.same(map[string][]found{unit: want})
	return len(got)
}

// killed ends a unit that would store something if it was stopped. For systemd 254 a
// process that is about to end can be an error.
func (b *bed) killed(unit string) {
	b.Helper()
	b.until("systemctl kill --signal=KILL %[1]s || systemctl -q is-failed %[1]s", unit)
	b.until("systemctl -q is-failed %s", unit)
}
