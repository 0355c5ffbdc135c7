// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// ReadAvailable returns how many bytes of memory can be had without swapping,
// MemAvailable of /proc/meminfo below root.
func ReadAvailable(root fs.FS) (int64, error) {
	data, err := readSmallFile(root, "proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read how much memory is available: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.Trim(value, " kB\n"), 10, 53)
			if err != nil {
				return 0, fmt.Errorf("read how much memory is available: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/meminfo does not say how much memory is available")
}

// ReadScratch returns the bytes of the largest scratch area, the memory that
// holds the next kernel and its initrd until it runs, from debugfs's
// kho/out/scratch_len below root (kernel/liveupdate/kexec_handover_debugfs.c,
// Linux 7.2).
func ReadScratch(root fs.FS) Fact[int64] {
	const name = debugfsRoot + "/kho/out/scratch_len"
	data, err := readSmallFile(root, name)
	if err != nil {
		return unknown[int64](fmt.Sprintf("/%s cannot be read", name))
	}
	var largest int64
	for _, area := range strings.Fields(string(data)) {
		size, err := strconv.ParseInt(area, 0, 64)
		if err != nil {
			return unknown[int64](fmt.Sprintf("/%s has %q in it", name, area))
		}
		largest = max(largest, size)
	}
	if largest == 0 {
		return unknown[int64](fmt.Sprintf("/%s is empty", name))
	}
	return known(largest, SourceDebugfs)
}
