// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// What kernels hand to each other, seen through debugfs. Numbers are in the
// machine's own byte order.

const (
	// luoCompatible names the one layout of struct luo_ser known here:
	// LUO_ABI_COMPATIBLE of include/linux/kho/abi/luo.h (Linux 7.2 and 7.3).
	luoCompatible = "luo-v5"
	luoSize       = 32 // char compatible[8]; u64 liveupdate_num, sessions_pa, flbs_pa

	// metadataVersion is KHO_KEXEC_METADATA_VERSION of
	// include/linux/kho/abi/kexec_metadata.h (Linux 7.2).
	metadataVersion = 1
	metadataSize    = 73 // packed: u32 version; char previous_release[65]; u32 kexec_count
)

// parseLUO returns the live-update number in a struct luo_ser: the number of the
// kernel that finds it, which is one more than that of the kernel that wrote it.
func parseLUO(blob []byte) (uint64, error) {
	if len(blob) < luoSize {
		return 0, fmt.Errorf("LUO state of %d bytes where %d are due", len(blob), luoSize)
	}
	if compatible := cString(blob[:8]); compatible != luoCompatible {
		return 0, fmt.Errorf("LUO state is %q; only %q can be read", compatible, luoCompatible)
	}
	number := binary.NativeEndian.Uint64(blob[8:])
	if number == 0 {
		return 0, errors.New("LUO state has live-update number 0")
	}
	return number, nil
}

// parseMetadata returns the release of the kernel that wrote a struct
// kho_kexec_metadata.
func parseMetadata(blob []byte) (string, error) {
	if len(blob) < 4 {
		return "", fmt.Errorf("kexec metadata of %d bytes", len(blob))
	}
	if version := binary.NativeEndian.Uint32(blob); version != metadataVersion {
		return "", fmt.Errorf("kexec metadata has version %d; only %d can be read", version, metadataVersion)
	}
	if len(blob) < metadataSize {
		return "", fmt.Errorf("kexec metadata of %d bytes where %d are due", len(blob), metadataSize)
	}
	release := cString(blob[4:69])
	if release == "" {
		return "", errors.New("kexec metadata has no kernel release")
	}
	return release, nil
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
