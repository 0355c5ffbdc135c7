// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Seals are the seals of a memfd, as fcntl(F_GET_SEALS) returns them.
type Seals uint32

// sealTable is part of version 1 of the manifest: a seal that it lacks is written
// as a number for ever, or old readers would refuse the manifest.
var sealTable = [...]struct {
	bit  Seals
	name string
}{
	{unix.F_SEAL_SEAL, "seal"},
	{unix.F_SEAL_SHRINK, "shrink"},
	{unix.F_SEAL_GROW, "grow"},
	{unix.F_SEAL_WRITE, "write"},
	{unix.F_SEAL_FUTURE_WRITE, "future-write"},
	{unix.F_SEAL_EXEC, "exec"},
}

// Names returns the names of the seals in the order of their bits: the name of
// the constant in include/uapi/linux/fcntl.h (Linux 7.2) in lower case without
// F_SEAL_, and for all bits without a name one number such as "0x40".
func (s Seals) Names() []string {
	var names []string
	for _, seal := range sealTable {
		if s&seal.bit != 0 {
			names = append(names, seal.name)
			s &^= seal.bit
		}
	}
	if s != 0 {
		names = append(names, "0x"+strconv.FormatUint(uint64(s), 16))
	}
	return names
}

// sealBits is the reverse of Names for one name.
func sealBits(name string) (Seals, bool) {
	for _, seal := range sealTable {
		if seal.name == name {
			return seal.bit, true
		}
	}
	hex, ok := strings.CutPrefix(name, "0x")
	bits, err := strconv.ParseUint(hex, 16, 32)
	return Seals(bits), ok && err == nil
}
