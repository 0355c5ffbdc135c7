// SPDX-License-Identifier: Apache-2.0

//go:build vm && soak

package test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/test/contents"
)

var (
	updates = flag.Int("updates", 20, "how many live updates to go through")
	seed    = flag.Uint64("seed", uint64(time.Now().UnixNano()), "what the random choices begin with")
)

// What amount_test.go has less of.
const (
	stride    = 1
	middles   = 3
	manyUnits = 100
	manyFiles = 2000
	thorough  = true

	commandBound  = 30 * time.Minute // a thousand units take their time
	scenarioBound = 45 * time.Minute
)

// soak goes through live updates in a row with random units, fds and faults, and
// knows what each unit has to find.
type soak struct {
	*bed
	*rand.Rand
	units map[string]*soaked
	next  int // the number of the next unit
}

// soaked is a unit of a soak.
type soaked struct {
	truth []found
	held  int // the updates it has yet to stay stopped for; it runs when 0
}

// TestSoak takes hours where TestKernelUpdate takes a minute. Run it again with
// the seed that it prints to see the same again.
func TestSoak(t *testing.T) {
	t.Logf("-updates %d -seed %d", *updates, *seed)
	s := &soak{
		bed:   bootFor(t, 3*time.Hour, images.with, vm.Config{}),
		Rand:  rand.New(rand.NewPCG(*seed, 0)),
		units: map[string]*soaked{},
	}
	s.sh("systemctl daemon-reload")
	for range 6 {
		s.add()
	}
	for n := range *updates {
		s.change()
		mishap := s.mishap()
		t.Logf("update %d of %d: %d units, %s", n+1, *updates, len(s.units), mishap.name)
		s.establish()
		mishap.before()
		s.bed.kexec()
		mishap.after()
		s.check()
		if t.Failed() {
			break
		}
	}
	s.off()
}

// files are those of a unit.
func (s *soak) files() []string {
	files := make([]string, 1+s.IntN(30))
	for i := range files {
		size := s.IntN(1 << s.IntN(22))
		files[i] = fmt.Sprintf("f%d,%s,%d,%d,%#x", s.IntN(20), []string{"memfd", "noexec"}[s.IntN(2)], size, s.IntN(size+1),
			[]int{0, 0, 0x2, 0x4, 0x6, 0xe}[s.IntN(6)])
	}
	return files
}

// write gives a unit random files; a new one or one that has stopped.
func (s *soak) write(unit string) {
	s.Helper()
	files := s.files()
	if s.IntN(4) == 0 { // the first file once more, as a file of its own
		name, _, _ := strings.Cut(files[0], ",")
		files = append(files, fmt.Sprintf("again,again,%s/%s,%d", unit, name, s.IntN(10)))
	}
	s.file("/etc/systemd/system/"+unit, service(optIn, files...))
	s.units[unit] = &soaked{}
}

// add makes and starts one more unit.
func (s *soak) add() {
	s.Helper()
	unit := fmt.Sprintf("soak%d.service", s.next)
	s.next++
	s.write(unit)
	s.sh("systemctl daemon-reload; systemctl enable --now %s", unit)
}

// change adds, removes and rewrites units that run.
func (s *soak) change() {
	s.Helper()
	for _, unit := range s.running() {
		switch s.IntN(6) {
		case 0: // other files
			s.sh("systemctl stop %s; systemctl clean --what=fdstore %[1]s", unit)
			s.write(unit)
			s.sh("systemctl daemon-reload; systemctl start %s", unit)
		case 1: // gone
			if len(s.units) > 3 {
				s.sh("systemctl disable --now %s; systemctl clean --what=fdstore %[1]s; rm /etc/systemd/system/%[1]s", unit)
				delete(s.units, unit)
			}
		case 2:
			s.add()
		}
	}
}

// running returns the units that are not held, in order, so that a seed makes
// the same choices again.
func (s *soak) running() []string {
	var list []string
	for _, unit := range slices.Sorted(maps.Keys(s.units)) {
		if s.units[unit].held == 0 {
			list = append(list, unit)
		}
	}
	return list
}

// establish finds out what each unit that runs has to find, and stops some, for
// one update or several. From then on PID 1 must not be reloaded: it would turn
// the stores round.
func (s *soak) establish() {
	s.Helper()
	running := s.running()
	if len(running) == 0 {
		return
	}
	for unit, truth := range s.restarted(running...) {
		s.units[unit].truth = truth
	}
	for _, unit := range running {
		if s.IntN(4) == 0 {
			s.units[unit].held = 1 + s.IntN(3)
			s.sh("systemctl stop %s; systemctl disable -q --no-reload %[1]s", unit)
		}
	}
}

// check checks what each unit has found, and that what is held is held; and
// starts what was held long enough.
func (s *soak) check() {
	s.Helper()
	list := s.list()
	for _, unit := range slices.Sorted(maps.Keys(s.units)) {
		u := s.units[unit]
		if u.held > 0 {
			if l := list[unit]; l.State != wire.StateHeld || l.Held != len(u.truth) {
				s.Errorf("%s is listed as %+v, want %d fds held", unit, l, len(u.truth))
			}
			if u.held--; u.held > 0 {
				continue
			}
			s.sh("systemctl enable -q --no-reload %s; systemctl start %[1]s", unit)
		}
		s.same(map[string][]found{unit: u.truth})
	}
	s.noProblems()
}

// mishap is what comes between: before the update is begun and after it.
type mishap struct {
	name          string
	before, after func()
}

func (s *soak) mishap() mishap {
	nothing := func() {}
	mishaps := []mishap{
		{"no fault", nothing, nothing},
		{"fdbridged is killed before the update", s.killServe, nothing},
		{"fdbridged is killed after the update", nothing, s.killServe},
		// Each time PID 1 turns all stores round.
		{"PID 1 re-executes itself before the update", func() { s.sh("systemctl daemon-reexec; systemctl daemon-reexec") }, nothing},
		{"PID 1 re-executes itself after the update", nothing, func() { s.sh("systemctl daemon-reexec") }},
		{"an update is called off first", s.calledOffFirst, nothing},
	}
	return mishaps[s.IntN(len(mishaps))]
}

// calledOffFirst has an update called off. What it has left to each unit that runs is all that
// there was, but PID 1 may have turned it round: from then on that is what the unit has to
// find.
func (s *soak) calledOffFirst() {
	s.Helper()
	s.file("/etc/systemd/system/"+losing, service(optIn+"[X-FDBridge]\nRequired=yes\n", "p,pipe"))
	s.sh("systemctl daemon-reload; systemctl start %s", losing)
	s.calledOff(nil)
	running := s.running()
	s.active(running...)
	s.sh("systemctl stop %s; rm /etc/systemd/system/%[1]s; systemctl daemon-reload", losing)
	if len(running) == 0 {
		return
	}
	inAnyOrder := cmpopts.SortSlices(func(a, b found) bool { return fmt.Sprint(a) < fmt.Sprint(b) })
	for unit, left := range s.restarted(running...) {
		if diff := cmp.Diff(s.units[unit].truth, left, inAnyOrder); diff != "" {
			s.Errorf("%s finds other fds after an update that was called off (-want +got):\n%s", unit, diff)
		}
		s.units[unit].truth = left
	}
}

// A thousand units, which is more than there are sessions before Linux 7.2.
func TestAThousandUnits(t *testing.T) {
	b := bootFor(t, time.Hour, images.with, vm.Config{Memory: 8192})
	// PID 1 does nothing else until it has begun to start all, which takes emulated
	// processors longer than a unit may take.
	b.units(map[string]string{"x@.service": service(optIn+"TimeoutStartSec=15min\n", "one,memfd,4096", "two,memfd,100,7")})
	truth := map[string][]found{}
	const readWrite, memfdMode = 2, 0o100777
	var names []string
	for i := range 1000 {
		unit := fmt.Sprintf("x@%d.service", i)
		names = append(names, unit)
		truth[unit] = []found{
			{Name: "two", Type: "memfd", Size: 100, Position: 7, Flags: readWrite, Mode: memfdMode, Sum: contents.Of(unit, "two", 100)},
			{Name: "one", Type: "memfd", Size: 4096, Flags: readWrite, Mode: memfdMode, Sum: contents.Of(unit, "one", 4096)},
		}
	}
	for hundred := range slices.Chunk(names, 100) { // a boot of emulated processors has its limits
		b.sh("systemctl enable -q --no-reload %s; systemctl start %[1]s", strings.Join(hundred, " "))
	}
	b.kexec()
	b.same(truth)
	b.noProblems()
	b.off()
}
