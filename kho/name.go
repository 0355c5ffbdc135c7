// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// IndexSession is the name of the session that carries the index.
const IndexSession = "fdbridge"

const (
	sessionPrefix = IndexSession + "."

	// maxSession is the longest session name in bytes:
	// LIVEUPDATE_SESSION_NAME_LENGTH of include/uapi/linux/liveupdate.h (Linux
	// 6.19) less the NUL.
	maxSession = 63

	// hashDigits is how many hexadecimal digits tell cut names apart. Sixteen
	// make a clash among a million such units less likely than 1 in 10^7.
	hashDigits = 16
)

// SessionName returns the name of the session of unit: "fdbridge." and the unit's
// name. A name that would be longer than the 63 bytes the kernel allows is cut
// and ends in "~" and the first 16 hexadecimal digits of the SHA-256 of the whole
// unit name. "~" cannot occur in a unit name, so that no two units share a name.
func SessionName(unit string) string {
	name := sessionPrefix + unit
	if len(name) <= maxSession {
		return name
	}
	sum := sha256.Sum256([]byte(unit))
	return name[:maxSession-1-hashDigits] + "~" + hex.EncodeToString(sum[:])[:hashDigits]
}

// IsSession reports whether a session of this name is fdbridge's: the index or,
// by its prefix, a unit's. Such a session that fdbridge did not make is refused.
func IsSession(name string) bool {
	return name == IndexSession || strings.HasPrefix(name, sessionPrefix)
}

// isUnitSession reports whether a session of this name can be a unit's.
func isUnitSession(name string) bool {
	return IsSession(name) && name != IndexSession && len(name) <= maxSession
}
