// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/hex"
	"strings"

	"github.com/godbus/dbus/v5"
)

const unitsPath = Path + "/unit"

// unitPath returns the path of a unit's object, escaped as systemd's are
// (bus_label_escape in src/basic/bus-label.c, systemd 257).
func unitPath(unit string) dbus.ObjectPath {
	var b strings.Builder
	b.WriteString(unitsPath + "/")
	for i := range len(unit) {
		c := unit[i]
		if isLetter(c) || i > 0 && isDigit(c) {
			b.WriteByte(c)
		} else {
			b.WriteString("_" + hex.EncodeToString([]byte{c}))
		}
	}
	return dbus.ObjectPath(b.String())
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }

// unitAt returns the unit whose object is at a path; false when there can be none.
func unitAt(path dbus.ObjectPath) (string, bool) {
	label, ok := strings.CutPrefix(string(path), unitsPath+"/")
	if !ok || label == "" {
		return "", false
	}
	var unit []byte
	for i := 0; i < len(label); i++ {
		if label[i] != '_' {
			unit = append(unit, label[i])
			continue
		}
		if i+2 >= len(label) {
			return "", false
		}
		c, err := hex.DecodeString(label[i+1 : i+3])
		if err != nil {
			return "", false
		}
		unit, i = append(unit, c...), i+2
	}
	// Only one way to write it is an object.
	return string(unit), unitPath(string(unit)) == path
}
