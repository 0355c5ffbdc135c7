// SPDX-License-Identifier: Apache-2.0

package kho

import "fmt"

// Release is the beginning of a kernel's release.
type Release struct{ Major, Minor int }

// ReleaseOf reads what uname -r prints. What is no release is before all.
func ReleaseOf(text string) Release {
	var r Release
	if n, _ := fmt.Sscanf(text, "%d.%d", &r.Major, &r.Minor); n != 2 {
		return Release{}
	}
	return r
}

// Before tells whether a release is earlier than another.
func (r Release) Before(other Release) bool {
	return r.Major < other.Major || r.Major == other.Major && r.Minor < other.Minor
}
