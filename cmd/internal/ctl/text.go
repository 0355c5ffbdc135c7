// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

func (v *view) unitsText(list []wire.Unit) string {
	if len(list) == 0 {
		return "No unit has opted in, and nothing is held.\n"
	}
	var rows [][]string
	for _, u := range list {
		size := "-"
		if u.Held > 0 {
			size = formatBytes(u.HeldBytes)
		}
		rows = append(rows, []string{u.Unit, u.State, fmt.Sprint(u.Stored), fmt.Sprint(u.Held + u.Sessions), size, fmt.Sprint(u.Lost)})
	}
	return v.table([]string{"UNIT", "STATE", "STORED", "HELD", "SIZE", "LOST"}, rows, 0)
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
