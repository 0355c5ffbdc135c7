// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// figures is what one run gives, or the medians of several: seconds, and bytes of memory.
type figures struct {
	loop, ready, own, down, start, unit, first, last float64
	preserve, pid1, serve                            float64
}

// column is a column of the table.
type column struct {
	name, legend string
	show         func(v float64) string
	of           func(f *figures) *float64
}

var columns = []column{
	{"loop", "a plain loop that does nothing but put as many such memfds into a session for each unit",
		milliseconds, func(f *figures) *float64 { return &f.loop }},
	{"ready", "all services stopped (shutdown.target) to the sessions' being complete",
		milliseconds, func(f *figures) *float64 { return &f.ready }},
	{"own", "what of ready nothing else is done in",
		milliseconds, func(f *figures) *float64 { return &f.own }},
	{"down", "all services stopped to the start of the next kernel, without the look at the memory of processes",
		seconds, func(f *figures) *float64 { return &f.down }},
	{"start", "PID 1's start to the first unit's beginning to start",
		seconds, func(f *figures) *float64 { return &f.start }},
	{"unit", "a unit's beginning to start, noted when its first process was started, to the start of its main process; the median of the units",
		milliseconds, func(f *figures) *float64 { return &f.unit }},
	{"first", "PID 1's start to the start of the first main process",
		seconds, func(f *figures) *float64 { return &f.first }},
	{"last", "PID 1's start to the start of the last main process",
		seconds, func(f *figures) *float64 { return &f.last }},
	{"preserve", "the peak of the resident memory of fdbridged preserve, when all is preserved",
		megabytes, func(f *figures) *float64 { return &f.preserve }},
	{"PID 1", "that of PID 1 at the same time",
		megabytes, func(f *figures) *float64 { return &f.pid1 }},
	{"serve", "that of fdbridged in the next kernel",
		megabytes, func(f *figures) *float64 { return &f.serve }},
}

func milliseconds(v float64) string { return fmt.Sprintf("%.0f ms", v*1e3) }
func seconds(v float64) string      { return fmt.Sprintf("%.2f s", v) }

// megabytes is nothing for a process that was not there.
func megabytes(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f MB", v/1e6)
}

// line is a line of a table.
func line(cells ...string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

// header is the head of a table.
func header(names ...string) string {
	return line(names...) + strings.Repeat("|---", len(names)) + "|\n"
}

// tableHeader is that of the table of medians.
func tableHeader() string {
	names := []string{"units x memfds x size", "with"}
	for _, c := range columns {
		names = append(names, c.name)
	}
	return header(names...)
}

func legend() string {
	text := "\n"
	for _, c := range columns {
		text += c.name + ": " + c.legend + "\n"
	}
	return text + "\n"
}

// row is a line of the table of medians.
func (f *figures) row(l load, s system) string {
	cells := []string{l.String(), s.name}
	for _, c := range columns {
		cells = append(cells, c.show(*c.of(f)))
	}
	return line(cells...)
}

// failedRow is that of a load that could not be measured.
func failedRow(l load, s system, err error) string {
	const most = 200
	why := []rune(strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "|", "/")), " "))
	return line(l.String(), s.name, "failed: "+string(why[:min(len(why), most)]))
}

// medians are those of at least one run.
func medians(all []figures) (m figures) {
	for _, c := range columns {
		var list []float64
		for i := range all {
			list = append(list, *c.of(&all[i]))
		}
		*c.of(&m) = median(list)
	}
	return m
}

// median sorts a list, which must not be empty.
func median(list []float64) float64 {
	slices.Sort(list)
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}
