// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// How much of each fits one screen.
const (
	shownUnits    = 8
	shownLost     = 4
	shownProblems = 4
)

func statusCommand(d daemon, v *view) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [UNIT]",
		Short: "Show what the last live update did, or what is known of a unit",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := d.report()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return output(cmd.OutOrStdout(), v.json, report, func() string { return v.reportText(report) })
			}
			list, err := d.units()
			if err != nil {
				return err
			}
			unit, err := report.of(list, unitName(args[0]))
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), v.json, unit, func() string { return v.unitText(unit) })
		},
		ValidArgsFunction: d.completeUnits(anyUnit),
	}
	v.addFull(cmd)
	return cmd
}

// report is what status prints.
type report wire.Report

func (d daemon) report() (*report, error) {
	r, err := wire.ReadReport(d.socket)
	if errors.Is(err, unix.EACCES) {
		r = &wire.Report{}
		err = d.describe(busPath, busManager, r)
	}
	return (*report)(r), d.explain(err)
}

// unitReport is what status prints of one unit.
type unitReport struct {
	wire.Unit
	Carried  *wire.Carried `json:"carried,omitempty"` // by the last live update
	LostFDs  []wire.Lost   `json:"lost_fds"`
	Problems []string      `json:"problems"`
}

// of takes a unit's part out of a report; list are all that are known.
func (r *report) of(list []wire.Unit, unit string) (*unitReport, error) {
	u := &unitReport{Unit: wire.Unit{Unit: unit}, LostFDs: []wire.Lost{}, Problems: []string{}}
	found := false
	for _, known := range list {
		if known.Unit == unit {
			u.Unit, found = known, true
		}
	}
	for _, c := range r.Carried {
		if c.Unit == unit {
			u.Carried, found = &c, true
		}
	}
	for _, l := range r.Lost {
		if l.Unit == unit {
			u.LostFDs, found = append(u.LostFDs, l), true
		}
	}
	u.Unit.Lost = len(u.LostFDs)
	for _, p := range r.Problems {
		if strings.HasPrefix(p, unit+": ") {
			u.Problems, found = append(u.Problems, p), true
		}
	}
	if !found {
		return nil, fmt.Errorf("fdbridge has nothing to do with %s: it is not loaded, or has not opted in with "+
			"FileDescriptorStoreMax= above zero and FileDescriptorStorePreserve=yes; see fdbridgectl list", unit)
	}
	return u, nil
}

func (v *view) reportText(r *report) string {
	var text strings.Builder
	list := []fact{{"fdbridge", r.Version}, {"Kernel", r.Kernel.Release}, {"Boot ID", r.Kernel.BootID}}
	add := func(name, format string, args ...any) { list = append(list, fact{name, fmt.Sprintf(format, args...)}) }
	switch n := r.Kernel.LiveUpdateNumber; {
	case n == nil:
		add("Live updates", "number not known: %s", r.Kernel.Note)
	case *n == 0:
		add("Live updates", "none since the machine was switched on")
	default:
		add("Live updates", "%d since the machine was switched on", *n)
	}
	if r.Kernel.Previous != "" {
		add("Kernel before", "%s", r.Kernel.Previous)
	}
	switch h := r.Handover; {
	case r.Unknown != "":
		add("Carried", "not known: %s", r.Unknown)
	case h == nil:
		add("Carried", "nothing: no live update by fdbridge led to this kernel")
	default:
		list = append(list, r.steps()...)
		add("Carried", "%s of %s, %s", count(h.Entries, "fd"), count(h.Units, "unit"), formatBytes(h.Bytes))
		add("Lost", "%s", count(h.Lost, "fd"))
		add("Held", "%s", heldText(r.Held, r.Sessions))
	}
	text.WriteString(facts(list))
	v.carried(&text, r.Carried)
	v.lost(&text, r.Lost)
	v.problems(&text, r.Problems)
	return text.String()
}

func heldText(units, sessions int) string {
	text := "the fds of " + count(units, "unit")
	own := count(sessions, "session") + " of services"
	switch {
	case sessions == 0:
		return text
	case units == 0:
		return own
	}
	return text + ", and " + own
}

// steps says how long each took.
func (r *report) steps() []fact {
	h := r.Handover
	list := []fact{{"Preserved", fmt.Sprintf("%s, in %s", h.Time.Format(time.RFC3339), duration(h.DurationUS))}}
	if h.ReplaceUS > 0 {
		list = append(list, fact{"Replaced", fmt.Sprintf("the kernel, in about %s", (time.Duration(h.ReplaceUS) * time.Microsecond).Round(100*time.Millisecond))})
	}
	if h.RestoreUS > 0 {
		list = append(list, fact{"Taken over", "in " + duration(h.RestoreUS)})
	}
	longest, delivered := int64(0), 0
	for _, c := range r.Carried {
		if longest = max(longest, c.DeliverUS); c.DeliverUS > 0 {
			delivered++
		}
	}
	if delivered > 0 {
		list = append(list, fact{"Delivered", fmt.Sprintf("to %s, each in %s or less", count(delivered, "unit"), duration(longest))})
	}
	return list
}

// carried writes for whom what was carried, the largest first.
func (v *view) carried(text *strings.Builder, list []wire.Carried) {
	if len(list) == 0 {
		return
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b wire.Carried) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(b.Entries, a.Entries), strings.Compare(a.Unit, b.Unit))
	})
	var rows [][]string
	for _, c := range list[:v.shown(len(list), shownUnits)] {
		rows = append(rows, []string{c.Unit, fmt.Sprint(c.Entries), formatBytes(c.Bytes), delivery(&c)})
	}
	text.WriteString("\n" + v.table([]string{"UNIT", "FDS", "SIZE", "DELIVERED"}, rows, 0))
	v.more(text, len(list)-len(rows))
}

// delivery says what has become of what was carried for a unit.
func delivery(c *wire.Carried) string {
	switch {
	case c.Held:
		return "held"
	case c.DeliverUS > 0:
		return "in " + duration(c.DeliverUS)
	}
	return "-"
}

// shown returns how many of n things are to be shown.
func (v *view) shown(n, most int) int {
	if v.full {
		return n
	}
	return min(n, most)
}

func (v *view) more(text *strings.Builder, n int) {
	if n > 0 {
		fmt.Fprintf(text, "and %d more; --full shows all\n", n)
	}
}

// lost names what was lost, what has one reason together.
func (v *view) lost(text *strings.Builder, list []wire.Lost) {
	var groups []check.Problem
	for _, l := range list {
		i := slices.IndexFunc(groups, func(g check.Problem) bool {
			return g.Unit == l.Unit && g.Type == l.Type && g.Message == l.Reason
		})
		if i < 0 {
			i = len(groups)
			groups = append(groups, check.Problem{Unit: l.Unit, Type: l.Type, Message: l.Reason})
		}
		groups[i].FDs = append(groups[i].FDs, l.Name)
	}
	if len(groups) > 0 {
		text.WriteString("\n")
	}
	shown := v.shown(len(groups), shownLost)
	for i := range groups[:shown] {
		v.labelled(text, red, "Lost", v.subject(&groups[i])+oneLine(groups[i].Message))
	}
	v.more(text, len(groups)-shown)
}

func (v *view) problems(text *strings.Builder, list []string) {
	if len(list) > 0 {
		text.WriteString("\n")
	}
	shown := v.shown(len(list), shownProblems)
	for _, p := range list[:shown] {
		v.labelled(text, yellow, "Problem", oneLine(p))
	}
	v.more(text, len(list)-shown)
}

func (v *view) unitText(u *unitReport) string {
	state := u.State
	if state == "" {
		state = "not opted in"
	}
	list := []fact{{"Unit", u.Unit.Unit}, {"State", state}, {"Stored", count(u.Stored, "fd")}}
	if u.Held > 0 {
		list = append(list, fact{"Held", fmt.Sprintf("%s, %s, in session %s", count(u.Held, "fd"), formatBytes(u.HeldBytes), u.Session)})
	}
	if u.Sessions > 0 {
		list = append(list, fact{"Sessions", fmt.Sprintf("%d of its own, which it has not taken over", u.Sessions)})
	}
	if u.As != "" {
		list = append(list, fact{"Goes to", u.As + ", as an administrator has decided"})
	}
	if c := u.Carried; c != nil {
		said := fmt.Sprintf("%s, %s, by the last live update", count(c.Entries, "fd"), formatBytes(c.Bytes))
		if c.DeliverUS > 0 {
			said += ", delivered in " + duration(c.DeliverUS)
		}
		list = append(list, fact{"Carried", said})
	}
	list = append(list, fact{"Lost", count(len(u.LostFDs), "fd")})
	var text strings.Builder
	text.WriteString(facts(list))
	v.lost(&text, u.LostFDs)
	v.problems(&text, u.Problems)
	return text.String()
}

func duration(us int64) string {
	d := time.Duration(us) * time.Microsecond
	if d >= time.Millisecond {
		return d.Round(time.Millisecond).String()
	}
	return d.String()
}
