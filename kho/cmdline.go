// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"iter"
	"strings"
)

// parseSwitch returns what the kernel command line says of a switch such as kho=
// or liveupdate=, and whether it says anything. It follows parse_args of
// kernel/params.c, next_arg of lib/cmdline.c and kstrtobool of lib/kstrtox.c
// (Linux 7.2): the last valid value counts, and nothing behind "--".
func parseSwitch(cmdline, name string) (on, given bool) {
	for arg := range args(cmdline) {
		if arg == "--" {
			break
		}
		key, val, _ := strings.Cut(arg, "=")
		if strings.TrimPrefix(key, `"`) != name {
			continue
		}
		if b, valid := parseBool(strings.TrimPrefix(val, `"`)); valid {
			on, given = b, true
		}
	}
	return on, given
}

// args yields the arguments of a kernel command line: what stands between spaces
// that are not quoted.
func args(cmdline string) iter.Seq[string] {
	return func(yield func(string) bool) {
		quoted, start := false, 0
		for i := range len(cmdline) + 1 {
			if i < len(cmdline) {
				if cmdline[i] == '"' {
					quoted = !quoted
				}
				if quoted || !isSpace(cmdline[i]) {
					continue
				}
			}
			if i > start && !yield(cmdline[start:i]) {
				return
			}
			start = i + 1
		}
	}
}

// isSpace is the kernel's isspace, to which the no-break space of Latin-1 is one.
func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' || c == 0xa0 }

// parseBool is the kernel's kstrtobool, which looks at one or two letters only.
func parseBool(s string) (on, valid bool) {
	s = strings.ToLower(s)
	switch {
	case s == "":
		return false, false
	case strings.HasPrefix(s, "on"), strings.Contains("eyt1", s[:1]):
		return true, true
	case strings.HasPrefix(s, "of"), strings.Contains("dnf0", s[:1]):
		return false, true
	}
	return false, false
}
