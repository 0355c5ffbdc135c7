// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// same tells whether figures are those wanted but for less than a microsecond.
func same(got, want figures) bool {
	for _, c := range columns {
		if math.Abs(*c.of(&got)-*c.of(&want)) > 1e-7 {
			return false
		}
	}
	return true
}

// unitOf is what "systemctl show" says of a unit that was begun and whose main process was
// started at these microseconds.
func unitOf(state, status string, begun, main int) string {
	return fmt.Sprintf("Id=bench@0.service\nActiveState=%s\nStatusText=%s\nInactiveExitTimestampMonotonic=%d\nExecMainStartTimestampMonotonic=%d\n",
		state, status, begun, main)
}

func TestStartsOfUnits(t *testing.T) {
	const status = "passed 2 fds"
	shown := unitOf("active", status, 5_000_000, 6_000_000) + "\n" + unitOf("active", status, 4_000_000, 9_000_000) + "\n" +
		unitOf("active", status, 7_000_000, 9_500_000)
	var f figures
	if err := f.starts(shown, time.Second, load{units: 3, files: 2}); err != nil {
		t.Fatal(err)
	}
	if want := (figures{start: 3, unit: 2.5, first: 5, last: 8.5}); !same(f, want) {
		t.Errorf("the figures are %+v, want %+v", f, want)
	}
}

func TestUnitsThatAreNotAsTheyShouldBe(t *testing.T) {
	const status = "passed 2 fds"
	good := unitOf("active", status, 5, 6)
	for name, shown := range map[string]string{
		"none":              "",
		"one too few":       good,
		"one too many":      good + "\n" + good + "\n" + good,
		"failed":            good + "\n" + unitOf("failed", status, 5, 6),
		"no fds":            good + "\n" + unitOf("active", "passed 0 fds", 5, 6),
		"too few fds":       good + "\n" + unitOf("active", "passed 1 fds", 5, 6),
		"not begun":         good + "\n" + unitOf("active", status, 0, 6),
		"no main process":   good + "\n" + unitOf("active", status, 5, 0),
		"not all is told":   good + "\nId=bench@0.service\nActiveState=active\nStatusText=passed 2 fds\n",
		"time is no number": good + "\n" + strings.Replace(good, "=5", "=n/a", 1),
	} {
		var f figures
		if err := f.starts(shown, 0, load{units: 2, files: 2}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// end is the console of an update: the clock of benchsvc is 2 s ahead of the kernel's log.
const end = `[   50.000000] benchsvc: at 52000000
[  OK  ] Reached target shutdown.target - System Shutdown.
[   60.500000] benchsvc: peaks 16000 9000
[   61.000000] systemd-shutdown[1]: Syncing filesystems and block devices.
[   61.250000] systemd-shutdown[1]: Preserved fd stores in LUO session
[   62.000000] kexec_core: Starting new kernel
[    0.000000] Linux version 7.2.12
`

// reached is what PID 1 has said: looking at the peaks takes half a second.
var reached = map[string]time.Duration{
	stoppedUnit: 60 * time.Second, preserveUnit: 61500 * time.Millisecond,
	lateUnit: 62 * time.Second, peaksUnit: 62500 * time.Millisecond,
}

func TestEndsOfABoot(t *testing.T) {
	const pid1, preserve = 16000 * 1024, 9000 * 1024
	for _, test := range []struct {
		s    system
		want figures
	}{
		{system{}, figures{ready: 1.5, own: 1.5, down: 3.5, pid1: pid1, preserve: preserve}},
		{system{alone: true}, figures{ready: 2.75, own: 0.25, down: 3.5, pid1: pid1, preserve: preserve}},
	} {
		var f figures
		if err := f.stops(end, reached, test.s); err != nil || !same(f, test.want) {
			t.Errorf("the figures of %+v are %+v, %v; want %+v", test.s, f, err, test.want)
		}
	}
}

func TestAConsoleThatLacksALine(t *testing.T) {
	for _, part := range []string{"benchsvc: at", "benchsvc: peaks", "Syncing", "Preserved", "Starting"} {
		var f figures
		if err := f.stops(strings.Replace(end, part, "?", 1), reached, system{alone: true}); err == nil {
			t.Errorf("no error without %q", part)
		}
	}
	var f figures
	if err := f.stops(strings.Replace(end, " 9000", " 0", 1), reached, system{}); err == nil {
		t.Error("no error without the process that preserves")
	}
}

func TestMessagesAreOfWhenTheyWereSent(t *testing.T) {
	const message = `{"__MONOTONIC_TIMESTAMP":"9000000","__REALTIME_TIMESTAMP":"1700000001500000","_SOURCE_REALTIME_TIMESTAMP":"1700000000000000"}`
	at, err := sent(message)
	if want := 7500 * time.Millisecond; at != want || err != nil {
		t.Errorf("it was sent at %v, %v; want %v", at, err, want)
	}
	for _, text := range []string{"", "{}", strings.Replace(message, "_SOURCE", "_OTHER", 1)} {
		if _, err := sent(text); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

func TestCallsOfATrace(t *testing.T) {
	const trace = `100 openat(AT_FDCWD, "/x", O_RDONLY) = 3</x>
100 connect(5<UNIX-STREAM:[77]>, {sa_family=AF_UNIX, sun_path="/run/systemd/private"}, 23) = 0
100 sendmsg(5<UNIX-STREAM:[77]>, {msg_name=NULL}, 0) = 300
100 sendmsg(6<UNIX-STREAM:[78]>, {msg_name=NULL}, 0) = 5000
100 recvmsg(5<UNIX-STREAM:[77]>,  <unfinished ...>
101 close(3</x>) = 0
100 <... recvmsg resumed>{msg_name=NULL}, 0) = 500
101 --- SIGURG {si_signo=SIGURG} ---
`
	const others = 794 // two system calls for each fd in all
	want := "20 x 20 x 4 KiB: 2.0 system calls and 2 bytes of PID 1's socket per fd\n"
	if got := calls(trace + strings.Repeat("101 getpid() = 100\n", others)); got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
}
