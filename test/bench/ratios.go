// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
)

// measured names what the medians of a row are of.
type measured struct {
	load   load
	system string
}

const ratiosLegend = `
ready : alone, start : alone: the parts of what systemd 262 takes alone, which prepares nothing
ready : loop: the multiples of the loop on the same system
prepared : not: ready, as part of what it is when nothing is prepared
per fd, per unit: ready without what the loop takes

`

// ratios is the table of what the medians of fdbridge's systems are to others; what was
// not measured is left out.
func ratios(systems []system, of map[measured]figures) string {
	alone := systems[slices.IndexFunc(systems, func(s system) bool { return s.alone })].name
	text := "\n" + header("units x memfds x size", "with", "ready : alone", "start : alone", "ready : loop", "prepared : not", "per fd", "per unit")
	for _, l := range loads {
		unprepared := l
		unprepared.prepare = false
		by := of[measured{unprepared, alone}]
		for _, s := range systems {
			f, ok := of[measured{l, s.name}]
			if !ok || s.alone {
				continue
			}
			prepared := ""
			if l.prepare {
				prepared = quotient(f.ready, of[measured{unprepared, s.name}].ready)
			}
			over := (f.ready - f.loop) * 1e3
			text += line(l.String(), s.name, quotient(f.ready, by.ready), quotient(f.start, by.start), quotient(f.ready, f.loop),
				prepared, fmt.Sprintf("%.3f ms", over/float64(l.units*l.files)), fmt.Sprintf("%.2f ms", over/float64(l.units)))
		}
	}
	return text + ratiosLegend
}

// quotient is nothing for what was not measured.
func quotient(a, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}
