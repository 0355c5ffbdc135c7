// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/fdbridge/fdbridge/bridge/check"
)

const (
	columns  = 80
	namedFDs = 3 // how many fds with one problem are named
)

// checkText is the verdict in a line, then each problem and what to do about it.
func checkText(c *check.Result) string {
	var text strings.Builder
	text.WriteString(verdictText(c) + "\n")
	for i := range c.Problems {
		p := &c.Problems[i]
		label := map[check.Outcome]string{check.Impossible: "Impossible: ", check.Lossy: "Loss: "}[p.Outcome]
		if label == "" {
			label = "Note: "
		}
		wrap(&text, "", label+subject(p)+oneLine(p.Message))
		wrap(&text, "  ", p.Remedy)
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
func subject(p *check.Problem) string {
	if p.Unit == "" {
		return ""
	}
	if len(p.FDs) == 0 {
		return p.Unit + ": "
	}
	var names []string
	for _, name := range p.FDs[:min(len(p.FDs), namedFDs)] {
		names = append(names, fmt.Sprintf("%q", name))
	}
	if more := len(p.FDs) - namedFDs; more > 0 {
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

// wrap writes a paragraph whose lines have no more columns than there are, but
// for words that are longer. Lines after the first are indented by more.
func wrap(text *strings.Builder, indent, paragraph string) {
	used := 0
	for _, word := range strings.Fields(paragraph) {
		n := utf8.RuneCountInString(word)
		switch {
		case used == 0:
			text.WriteString(indent)
			used = len(indent)
		case used+1+n > columns:
			text.WriteString("\n    ")
			used = 4
		default:
			text.WriteString(" ")
			used++
		}
		text.WriteString(word)
		used += n
	}
	text.WriteString("\n")
}
