// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// unitsText is a table that fits 80 columns for unit names of up to 38 bytes.
// Longer names make it wider and are not cut, as systemctl does not cut them
// where its output is no terminal: people copy and scripts read them.
func unitsText(list []wire.Unit) string {
	if len(list) == 0 {
		return "No unit has opted in, and nothing is held.\n"
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "UNIT\tSTATE\tSTORED\tHELD\tSIZE\tLOST")
	for _, u := range list {
		size := "-"
		if u.Held > 0 {
			size = formatBytes(u.HeldBytes)
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%d\n", u.Unit, u.State, u.Stored, u.Held, size, u.Lost)
	}
	_ = table.Flush() // a Builder takes everything
	return text.String()
}

func reportText(r *report) string {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 1, ' ', tabwriter.AlignRight)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s:\t %s\n", name, fmt.Sprintf(format, args...))
	}
	row("fdbridge", "%s", r.Version)
	row("Kernel", "%s", r.Kernel.Release)
	row("Boot ID", "%s", r.Kernel.BootID)
	switch n := r.Kernel.LiveUpdateNumber; {
	case n == nil:
		row("Live updates", "number not known: %s", r.Kernel.Note)
	case *n == 0:
		row("Live updates", "none since the machine was switched on")
	default:
		row("Live updates", "%d since the machine was switched on", *n)
	}
	if r.Kernel.Previous != "" {
		row("Kernel before", "%s", r.Kernel.Previous)
	}
	if h := r.Handover; h != nil {
		row("Preserved", "%s, in %s", h.Time.Format(time.RFC3339), (time.Duration(h.DurationUS) * time.Microsecond).Round(time.Millisecond))
		row("Carried", "%s of %s, %s", count(h.Entries, "fd"), count(h.Units, "unit"), formatBytes(h.Bytes))
		row("Lost", "%s", count(h.Lost, "fd"))
		row("Held", "the fds of %s", count(r.Held, "unit"))
	} else {
		row("Carried", "nothing: no live update by fdbridge led to this kernel")
	}
	_ = table.Flush() // a Builder takes everything
	for _, l := range r.Lost {
		fmt.Fprintf(&text, "Lost: %s: fd %q (%s): %s\n", l.Unit, l.Name, l.Type, oneLine(l.Reason))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&text, "Problem: %s\n", p)
	}
	return text.String()
}

// oneLine makes one line of the several that a joined error has.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// count writes a number of things: "1 fd", "2 fds".
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// formatBytes writes a size as systemd does (format_bytes_full in
// src/basic/format-util.c of systemd 257): "100B", "64M", "1.5G". The digit
// after the point is cut off, not rounded, and left out when it is zero.
func formatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%dB", n)
	}
	unit := 0
	for ; n >= 1<<20; n >>= 10 {
		unit++
	}
	if tenths := n % 1024 * 10 / 1024; tenths > 0 {
		return fmt.Sprintf("%d.%d%c", n>>10, tenths, units[unit])
	}
	return fmt.Sprintf("%d%c", n>>10, units[unit])
}
