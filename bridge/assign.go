// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units/notify"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// Assign makes what is held for a unit another one's, or the unit's own whatever
// it has become since the live update: an administrator has decided so. It is
// true until nothing is held for the unit any more, in this boot. That a delivery of it was
// begun does not count any more then. When Assign returns, PID 1 has it. No delivery to
// either may be under way.
func (h *Holder) Assign(unit, to string) error {
	h.mu.Lock()
	_, before := h.assigned[unit]
	delete(h.assigned, unit)
	var err error
	for _, p := range h.held {
		if p.Unit == unit {
			err = errors.Join(err, h.unmark(markHash(p.manifest())))
		}
	}
	h.mu.Unlock() // PID 1 may be busy
	if err == nil && before {
		err = h.Keeper.Remove(assignedName(unit))
	}
	if err == nil {
		err = mark(h.Keeper, assignedName(unit), unit+" "+to)
	}
	if err == nil {
		err = h.Keeper.Barrier()
	}
	if err != nil {
		return fmt.Errorf("note who is to have what is held for %s: %w", unit, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.assigned[unit] = to
	return nil
}

// unassign forgets what was decided about units that nothing is held for any
// more. The caller has h.mu.
func (h *Holder) unassign() (failed error) {
	for unit := range h.assigned {
		if !slices.ContainsFunc(h.held, func(p *holding) bool { return p.Unit == unit }) {
			delete(h.assigned, unit)
			failed = errors.Join(failed, h.Keeper.Remove(assignedName(unit)))
		}
	}
	return failed
}

// maxAssigned is more than both names of an assignment's mark have, of 255 bytes
// at most each.
const maxAssigned = 1 << 10

// adoptAssigned reads the mark of an assignment, whose file stays the caller's;
// false when it is none.
func (h *Holder) adoptAssigned(p notify.Passed) bool {
	says, err := kho.Contents(p.FD, maxAssigned)
	unit, to, _ := strings.Cut(string(says), " ")
	if err != nil || assignedName(unit) != p.Name || !unitfile.ValidName(to) {
		return false
	}
	h.assigned[unit] = to
	return true
}

// claims are the names under which what is held can be a unit's.
type claims struct {
	unit     string   // its own
	previous []string // those that it says it had before
}

// names returns all of them.
func (c *claims) names() []string { return append([]string{c.unit}, c.previous...) }

// claimed returns the parcel that is to be delivered first to a unit: one that is
// its own or was assigned to it, or else one of a previous name. It is nil when
// there is none.
func (h *Holder) claimed(c *claims) *holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, previous := range []bool{false, true} {
		for _, p := range h.held {
			if h.claims(c, p, previous) {
				return p
			}
		}
	}
	return nil
}

// mayClaim tells whether a parcel is one that claimed may return.
func (h *Holder) mayClaim(c *claims, p *holding) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.claims(c, p, false) || h.claims(c, p, true)
}

// claims tells whether a parcel is one of a unit's, or one of its previous names.
// What was assigned is that unit's alone. The caller has h.mu.
func (h *Holder) claims(c *claims, p *holding, previous bool) bool {
	to, assigned := h.assigned[p.Unit]
	if previous {
		return !assigned && slices.Contains(c.previous, p.Unit)
	}
	return assigned && to == c.unit || !assigned && p.Unit == c.unit
}

// assignedTo returns who is to have what is held for a unit by an administrator's
// decision; empty when there was none.
func (h *Holder) assignedTo(unit string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.assigned[unit]
}
