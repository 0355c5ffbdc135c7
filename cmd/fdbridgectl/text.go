// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

func printUnits(w io.Writer, list []wire.Unit) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "No unit has opted in, and nothing is held.")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "UNIT\tSTATE\tSTORED\tHELD\tSIZE\tLOST")
	for _, u := range list {
		size := "-"
		if u.Held > 0 {
			size = bytes(u.HeldBytes)
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%d\n", u.Unit, u.State, u.Stored, u.Held, size, u.Lost)
	}
	return table.Flush()
}

func printReport(w io.Writer, r *report) error {
	table := tabwriter.NewWriter(w, 0, 0, 1, ' ', tabwriter.AlignRight)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s:\t %s\n", name, fmt.Sprintf(format, args...))
	}
	row("fdbridge", "%s", r.Version)
	row("Kernel", "%s, boot %s", r.Kernel.Release, r.Kernel.BootID)
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
		row("Carried", "%d fds of %d units, %s", h.Entries, h.Units, bytes(h.Bytes))
		row("Lost", "%d fds", h.Lost)
		row("Held", "the fds of %d units", r.Held)
	} else {
		row("Carried", "nothing: this kernel was started without a live update by fdbridge")
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, l := range r.Lost {
		fmt.Fprintf(w, "Lost: %s: fd %q (%s): %s\n", l.Unit, l.Name, l.Type, l.Reason)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "Problem: %s\n", p)
	}
	return nil
}

// bytes writes a size as systemd does: "64M", "1.5G".
func bytes(n int64) string {
	const units = "BKMGTPE"
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return strconv.FormatFloat(value, 'f', -1, 64)[:min(len(strconv.FormatFloat(value, 'f', -1, 64)), 4)] + units[unit:unit+1]
}
