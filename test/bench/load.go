// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// load is what there is to carry.
type load struct {
	units, files, size int
	sealed             bool
	prepare            bool // with fdbridgectl prepare before
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// loads are measured one after the other, each on a machine of its own for each system.
var loads = []load{
	{units: 1, files: 10, size: 4 * kib},
	{units: 10, files: 10, size: 4 * kib},
	{units: 100, files: 10, size: 4 * kib},
	{units: 200, files: 20, size: 4 * kib},
	{units: 1000, files: 10, size: 4 * kib},
	{units: 1, files: 100, size: 4 * kib},
	{units: 1, files: 1000, size: 4 * kib},
	{units: 1, files: 5000, size: 4 * kib},
	{units: 1, files: 1, size: 64 * mib, sealed: true},
	{units: 1, files: 8, size: 8 * mib, sealed: true},
	{units: 1, files: 1, size: 1024 * mib, sealed: true},
	{units: 1, files: 1, size: 1024 * mib, sealed: true, prepare: true},
	{units: 1, files: 8, size: 128 * mib, sealed: true},
	{units: 1, files: 8, size: 128 * mib, sealed: true, prepare: true},
}

// counted is the load whose system calls are counted.
var counted = load{units: 20, files: 20, size: 4 * kib}

func (l load) String() string {
	size, of := l.size/kib, "KiB"
	for _, larger := range []string{"MiB", "GiB"} {
		if size >= kib {
			size, of = size/kib, larger
		}
	}
	text := fmt.Sprintf("%d x %d x %d %s", l.units, l.files, size, of)
	if l.sealed {
		text += ", sealed"
	}
	if l.prepare {
		text += ", prepared"
	}
	return text
}

// memfds are the files of a unit as benchsvc is told of them.
func (l load) memfds() string {
	text := fmt.Sprint(l.files, " ", l.size)
	if l.sealed {
		text += " sealed"
	}
	return text
}
