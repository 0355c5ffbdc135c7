// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

func TestPathsAreEscapedAsSystemdEscapesThem(t *testing.T) {
	for unit, label := range map[string]string{
		"a.service":      "a_2eservice",
		"dbus.service":   "dbus_2eservice",
		"1a.service":     "_31a_2eservice",
		"a_b@c-d.mount":  "a_5fb_40c_2dd_2emount",
		`a\x2d:.service`: "a_5cx2d_3a_2eservice",
		"A9z":            "A9z",
		"\xff":           "_ff",
	} {
		path := dbus.ObjectPath(unitsPath + "/" + label)
		if got := unitPath(unit); got != path {
			t.Errorf("the path of %q is %s, want %s", unit, got, path)
		}
		if got, ok := unitAt(path); !ok || got != unit {
			t.Errorf("the unit at %s is %q, %v", path, got, ok)
		}
	}
}

// A path is that of one unit or of none, and every unit has a valid one.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"a_2eservice", "_", "_3", "_zz", "_2E", "a/b", "", "1a", "_31a", "a__"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if unit, ok := unitAt(dbus.ObjectPath(unitsPath + "/" + text)); ok {
			if got := unitPath(unit); got != dbus.ObjectPath(unitsPath+"/"+text) {
				t.Errorf("%q is the path of %q, whose path is %s", text, unit, got)
			}
		}
		if text == "" {
			return
		}
		path := unitPath(text)
		if unit, ok := unitAt(path); !ok || unit != text || !path.IsValid() {
			t.Errorf("the path of %q is %s, which is that of %q", text, path, unit)
		}
	})
}

// Whatever text there is, what is sent of it is what the bus takes.
func FuzzText(f *testing.F) {
	f.Add("a\x00\xff")
	f.Fuzz(func(t *testing.T, text string) {
		got := valid(text)
		if strings.ContainsRune(got, 0) || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q is sent as %q", text, got)
		}
	})
}
