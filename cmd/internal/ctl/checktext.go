// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/check"
)

// namedFDs is how many fds with one problem are named.
const namedFDs = 3

// checkText is the verdict in a line, then each problem and what to do about it.
func (v *view) checkText(c *check.Result) string {
	return verdictText(c) + "\n" + v.problemsText(c.Problems)
}

func (v *view) problemsText(problems []check.Problem) string {
	var text strings.Builder
	for i := range problems {
		p := &problems[i]
		label, colour := "Note", ""
		switch p.Outcome {
		case check.Impossible:
			label, colour = "Impossible", red
		case check.Lossy:
			label, colour = "Loss", yellow
		}
		v.labelled(&text, colour, label, v.subject(p)+oneLine(p.Message))
		text.WriteString(" ")
		wrap(&text, 1, 4, p.Remedy)
	}
	return text.String()
}

func verdictText(c *check.Result) string {
	carried, lost := c.Count()
	switch {
	case c.Outcome == check.Impossible:
		return "A live update cannot work."
	case c.CalledOff:
		return "The live update would be called off: fds of a required unit would be lost."
	case c.Outcome == check.Lossy && lost > 0:
		return fmt.Sprintf("Something would be lost: %d of %s.", lost, count(carried+lost, "fd"))
	case c.Outcome == check.Lossy:
		return "Something would be lost, or may be."
	case carried == 0:
		return "Nothing would be lost: nothing is stored."
	}
	return fmt.Sprintf("Nothing would be lost: %s of %s, %s.",
		count(carried, "fd"), count(len(c.Units), "unit"), formatBytes(c.Memory.Carried))
}

// subject says what a problem is about.
func (v *view) subject(p *check.Problem) string {
	if p.Unit == "" {
		return ""
	}
	if len(p.FDs) == 0 {
		return p.Unit + ": "
	}
	var names []string
	shown := v.shown(len(p.FDs), namedFDs)
	for _, name := range p.FDs[:shown] {
		names = append(names, fmt.Sprintf("%q", name))
	}
	if more := len(p.FDs) - shown; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	kind := ""
	if p.Type != "" {
		kind = " (" + p.Type + ")"
	}
	noun := "fd"
	if len(p.FDs) > 1 {
		noun = "fds"
	}
	return fmt.Sprintf("%s: %s %s%s: ", p.Unit, noun, strings.Join(names, ", "), kind)
}
