// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"flag"
	"slices"
	"sync"
)

// longest are the scenarios that take longest, in that order. The others come after
// them.
var longest = []string{
	"TestKernelUpdate", "TestTheRightFDGoesBackToTheRightUnit", "TestKernelUpdateWithSystemd254", "TestFaultsOfADelivery",
	"TestAnUpdateThatDoesNotArriveIsReported", "TestKernelUpdateWithSystemd262", "TestTheDeviceIsBusy",
	"TestTheNextKernelAndBack", "TestServicesHaveSessionsOfTheirOwn",
}

// machines gives as many scenarios a machine at a time as -parallel says, and the
// longest first, so that none of those runs alone in the end. The testing package
// promises no order; it lets all begin at once here, after all of them are in line.
// So the time that it says a scenario has taken has the wait in it.
var machines queue

type queue struct {
	mu    sync.Mutex
	free  int
	lined []*place
}

// place is that of a scenario in the queue.
type place struct {
	queue *queue
	rank  int
	turn  chan struct{}
}

// takeOver takes the place of the testing package's own queue.
func (q *queue) takeOver() error {
	parallel := flag.Lookup("test.parallel").Value
	q.free = parallel.(flag.Getter).Get().(int)
	const all = "1000"
	return parallel.Set(all)
}

// line has a scenario stand in line.
func (q *queue) line(name string) *place {
	rank := slices.Index(longest, name)
	if rank < 0 {
		rank = len(longest)
	}
	p := &place{q, rank, make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lined = append(q.lined, p)
	return p
}

// wait returns when it is the scenario's turn.
func (p *place) wait() {
	p.queue.next(0)
	<-p.turn
}

// leave has the next scenario begin.
func (p *place) leave() { p.queue.next(1) }

// next lets as many scenarios begin as there are machines for, of which some have
// become free.
func (q *queue) next(freed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.free += freed; q.free > 0 && len(q.lined) > 0; q.free-- {
		first := slices.MinFunc(q.lined, func(a, b *place) int { return a.rank - b.rank })
		q.lined = slices.DeleteFunc(q.lined, func(p *place) bool { return p == first })
		close(first.turn)
	}
}
