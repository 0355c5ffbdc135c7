// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestServiceSessionsOfTwoNeverShareAName(t *testing.T) {
	long := strings.Repeat("u", 100) + ".service"
	cut := ServiceSession("a.service", strings.Repeat("n", 100))
	tests := []struct{ name, unit, session, want string }{
		{"short", "vm.service", "guest", "fdbridge/vm.service/guest"},
		{"just fits", "vm.service", strings.Repeat("n", 18), "fdbridge/vm.service/" + strings.Repeat("n", 18)},
		// printf 'vm.service/nnn…' | sha256sum
		{"one too long", "vm.service", strings.Repeat("n", 19), "fdbridge/vm.service/n~c7ff5a8a8d96e3bb"},
		{"a long unit", long, "a", "fdbridge/" + strings.Repeat("u", 12) + "~8c4df45016209e31"},
		{"the same unit again", long, "b", "fdbridge/" + strings.Repeat("u", 12) + "~b238e222be720cd4"},
		{"a name like a cut one", "a.service", strings.TrimPrefix(cut, "fdbridge/a.service/"), "fdbridge/a.service/nn~"},
	}
	seen := map[string]string{cut: "the cut one"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ServiceSession(tt.unit, tt.session)
			if !strings.HasPrefix(got, tt.want) || len(got) > maxService {
				t.Errorf("ServiceSession = %q (%d bytes), want %q", got, len(got), tt.want)
			}
			if other := seen[got]; other != "" {
				t.Errorf("%q is also that of %s", got, other)
			}
			seen[got] = tt.name
			if !IsServiceSession(got) || IsSession(got) {
				t.Errorf("%q is taken for a unit's store", got)
			}
		})
	}
	for _, name := range []string{"fdbridge", "fdbridge.a.service", "systemd", "my/fdbridge/x"} {
		if IsServiceSession(name) {
			t.Errorf("IsServiceSession(%q) = true", name)
		}
	}
}

func TestServiceNamesAreThoseOfLUOSession(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "vm/0~x": true, strings.Repeat("n", 255): true,
		"": false, "a b": false, "a:b": false, "a\tb": false, "ä": false, strings.Repeat("n", 256): false,
	} {
		if err := CheckServiceName(name); (err == nil) != ok || !ok && !errors.Is(err, ErrServiceName) {
			t.Errorf("CheckServiceName(%.20q): %v", name, err)
		}
	}
}

func TestALabelRidesInAMemfd(t *testing.T) {
	want := NewService("vm.service", "guest", Identity{Fragment: "/etc/systemd/system/vm.service", User: "vm"})
	f, err := want.Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := ReadService(f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("ReadService (-want +got):\n%s", diff)
	}
	if _, err := ReadService(fdtest.MemfdWith(t, string(golden(t, "index-v1.json")))); !errors.Is(err, ErrFormat) {
		t.Errorf("ReadService of an index: %v", err)
	}
}

func TestAnIndexListsTheSessionsOfServices(t *testing.T) {
	x := exampleIndex()
	x.Services = []Service{NewService("vm.service", "guest", Identity{User: "vm"})}
	data, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `,"services":[{"unit":"vm.service","name":"guest","session":"fdbridge/vm.service/guest","identity":{"user":"vm"}}]}`
	if !strings.HasSuffix(string(data), want+"\n") {
		t.Errorf("Encode = %s, want %s at the end", data, want)
	}
	got, err := ParseIndex(data)
	if diff := cmp.Diff(x, got); err != nil || diff != "" {
		t.Errorf("ParseIndex: %v (-want +got):\n%s", err, diff)
	}
	for name, edit := range map[string]func(s *Service){
		"another's session": func(s *Service) { s.Session = "fdbridge/b.service/guest" },
		"no name":           func(s *Service) { s.Name = "" },
		"no unit":           func(s *Service) { s.Unit = "" },
	} {
		bad := *x
		bad.Services = []Service{x.Services[0]}
		edit(&bad.Services[0])
		if _, err := bad.Encode(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: Encode: %v", name, err)
		}
	}
	x.Services = append(x.Services, x.Services[0])
	if _, err := x.Encode(); !errors.Is(err, ErrFormat) {
		t.Errorf("a session twice: Encode: %v", err)
	}
}
