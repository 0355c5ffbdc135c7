// SPDX-License-Identifier: Apache-2.0

package unitfile_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

func makeFIFO(name string) error { return unix.Mkfifo(name, 0o600) }

func TestNames(t *testing.T) {
	for name, want := range map[string]struct {
		valid, template bool
		of              string
	}{
		"a.service":                                   {valid: true},
		"a-b\\x2dc:d_e.f.service":                     {valid: true},
		"a@.service":                                  {valid: true, template: true},
		"a@i@j.service":                               {valid: true, of: "a@.service"},
		"a@i.d.service":                               {valid: true, of: "a@.service"},
		strings.Repeat("x", 247) + ".service":         {valid: true},
		strings.Repeat("x", 248) + ".service":         {},
		strings.Repeat("x", 240) + "@ii" + ".service": {valid: true, of: strings.Repeat("x", 240) + "@.service"},
		".service":                                    {},
		"@.service":                                   {},
		"@i.service":                                  {},
		"a b.service":                                 {},
		"ä.service":                                   {},
		"a.socket":                                    {},
		"a":                                           {},
		"":                                            {},
	} {
		if got := unitfile.ValidName(name); got != want.valid {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
		if got := unitfile.IsTemplate(name); got != want.template {
			t.Errorf("IsTemplate(%q) = %v", name, got)
		}
		if got, ok := unitfile.TemplateOf(name); got != want.of || ok != (want.of != "") {
			t.Errorf("TemplateOf(%q) = %q, %v", name, got, ok)
		}
	}
}

func TestInstanceOf(t *testing.T) {
	long := strings.Repeat("x", 245) + "@.service"
	for _, test := range []struct{ template, unit, want string }{
		{"y@.service", "x@i@j.service", "y@i@j.service"},
		{"y@.service", "x@.service", ""},
		{"y@.service", "x.service", ""},
		{"y@.service", "x", ""},
		{"y@1.service", "x@i.service", ""},
		{"y.service", "x@i.service", ""},
		{long, "x@i.service", strings.Repeat("x", 245) + "@i.service"},
		{long, "x@ij.service", ""},
	} {
		if got, ok := unitfile.InstanceOf(test.template, test.unit); got != test.want && ok || ok != (test.want != "") {
			t.Errorf("InstanceOf(%q, %q) = %q, %v", test.template, test.unit, got, ok)
		}
	}
}
