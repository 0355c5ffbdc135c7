// SPDX-License-Identifier: Apache-2.0

//go:build vm && soak

package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm"
)

// "fdbridged preserve" is killed at each step before it is ready, and the update
// is called off each time.
func TestPreserveIsKilledAtEachStep(t *testing.T) {
	// Each time it is called off takes eight seconds, if the machine has little to do.
	b := bootFor(t, 30*time.Minute, images.with, vm.Config{})
	b.preserveUnderAtstep()
	b.units(map[string]string{
		"runs.service": service(optIn, "a,memfd,4096,1", "b,memfd,8192,2,0x2"),
		"held.service": byHand(optIn, "c,memfd,4096,3"),
	})
	truth := b.restarted("runs.service", "held.service")
	b.kexec()
	const runs, held = "runs.service", "held.service"
	b.same(of(truth, runs))
	b.held(truth, held)
	var hits []string
	kill := func(step int) {
		b.steps(preserveSteps, fmt.Sprint(step, " kill"))
		b.calledOff(nil) // maybe before the service was stopped
		hits = append(hits, b.stepped(preserveSteps)...)
		b.active(runs)
		b.same(of(truth, runs))
		b.held(truth, held)
	}
	for step := 1; len(hits) == 0 || !strings.HasPrefix(hits[len(hits)-1], "READY=1"); step++ {
		kill(step)
	}
	// What is held was taken apart on the way, which leaves fewer steps before
	// those in which it is preserved, until it comes through the next update.
	all, apart := len(hits), slices.IndexFunc(hits, func(step string) bool { return strings.HasPrefix(step, "FDSTORE=1") })
	for step := all - 1; step > all-5; step-- {
		kill(step)
	}
	for after := range 3 { // the barrier and FINISH are among them: there is one step more or less before them
		b.steps(preserveSteps)
		b.kexec()
		kill(apart + 2 + after)
	}
	b.hit(hits, "EXTEND_TIMEOUT_USEC", "CREATE_SESSION", "PRESERVE_FD", "RETRIEVE_FD", "FDSTORE=1", "BARRIER=1", "FINISH", "READY=1")
	b.steps(preserveSteps)
	b.kexec()
	b.same(of(truth, runs))
	b.held(truth, held)
	b.sh("systemctl start %s", held)
	b.complete(truth, runs, held)
	b.noProblems()
	b.off()
}
