// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestIndexVersion1IsWhatItWas(t *testing.T) {
	want := golden(t, "index-v1.json")
	got, err := exampleIndex().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("Encode (-want +got):\n%s", diff)
	}
	x, err := ParseIndex(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleIndex(), x); diff != "" {
		t.Errorf("ParseIndex (-want +got):\n%s", diff)
	}
}

func TestIndexRidesInAMemfd(t *testing.T) {
	f, err := exampleIndex().Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x, err := ReadIndex(f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleIndex(), x); diff != "" {
		t.Errorf("ReadIndex (-want +got):\n%s", diff)
	}
	if _, err := ReadIndex(fdtest.MemfdWith(t, string(golden(t, "manifest-v1.json")))); !errors.Is(err, ErrFormat) ||
		!strings.HasPrefix(err.Error(), "read index: ") {
		t.Errorf("ReadIndex of a manifest: %v", err)
	}
}

func TestIndexKeepsWhatItDoesNotKnow(t *testing.T) {
	const want = `{"format":"fdbridge.index","version":1,` +
		`"origin":{"boot_id":"b","kernel":"k","time":"2027-01-01T00:00:00Z","machine":"m"},"duration_us":0,` +
		`"units":[{"unit":"a.service","lost":[{"name":"n","type":"t","reason":"r","errno":2}],"cgroup":"/a"}],"later":[{}]}`
	x, err := ParseIndex([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	got, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want+"\n", string(got)); diff != "" {
		t.Errorf("after reading and writing (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Member{{"later", json.RawMessage(`[{}]`)}}, x.Unknown); diff != "" {
		t.Errorf("Unknown (-want +got):\n%s", diff)
	}
}

func TestParseIndexRefuses(t *testing.T) {
	good := string(golden(t, "index-v1.json"))
	change := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("the golden index lacks %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	const first = `"sessions":["fdbridge.counter.service",`
	tests := []struct {
		name, data string
		want       error
		says       string
	}{
		{"a truncated one", good[:len(good)-10], ErrFormat, "truncated"},
		{"trailing bytes", good + "{}", ErrFormat, "behind the end"},
		{"version 7", change(`"version":1`, `"version":7`), ErrVersion, "version 7"},
		{"a manifest", string(golden(t, "manifest-v1.json")), ErrFormat, `"fdbridge.manifest", not "fdbridge.index"`},
		{"a manifest twice", change(`"token":201,`, ``),
			ErrFormat, "the manifest of counter.service and of guest.service"},
		{"no unit name", change("proxy.service", ""), ErrFormat, "0 bytes"},
		{"the index as a session", change(first, `"sessions":["fdbridge",`), ErrFormat, "not the name of a unit's session"},
		{"another's session", change(first, `"sessions":["systemd",`), ErrFormat, "not the name of a unit's session"},
		{"a session name too long", change(first, `"sessions":["fdbridge.`+strings.Repeat("s", 55)+`",`),
			ErrFormat, "not the name of a unit's session"},
		{"entries but no session", change(`"sessions":["fdbridge.counter.service","fdbridge.counter.service#2"],`, ``),
			ErrFormat, "in no session"},
		{"entries below zero", change(`"entries":200`, `"entries":-200`), ErrFormat, "not a whole number"},
		{"bytes below zero", change(`"bytes":819200`, `"bytes":-1`), ErrFormat, "not a whole number"},
		{"a duration below zero", change(`123456`, `-123456`), ErrFormat, "not a whole number"},
		{"a duration of ages", change(`123456`, `9223372036854776`), ErrFormat, "too many"},
		{"lost without a reason", change(`"no handler"`, `""`), ErrFormat, "no reason"},
		{"lost with a bad name", change(`"listen"`, `"li:en"`), ErrFormat, "systemd does not allow"},
		{"lost without a type", change(`"type":"socket",`, ``), ErrFormat, `"type" is missing`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseIndex([]byte(tt.data))
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("ParseIndex: %v; want %v that says %q", err, tt.want, tt.says)
			}
		})
	}
}

func TestIndexRefusesToWriteWhatNobodyCouldRead(t *testing.T) {
	for name, edit := range map[string]func(x *Index){
		"a duration below zero": func(x *Index) { x.Duration = -time.Second },
		"entries below zero":    func(x *Index) { x.Units[1].Entries = -1 },
		"bytes below zero":      func(x *Index) { x.Units[1].Bytes = -1 },
		"the year -1":           func(x *Index) { x.Origin.Time = time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		x := exampleIndex()
		edit(x)
		if f, err := x.Memfd(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: Memfd: %v, %v", name, f, err)
		}
	}
}

// A unit has a second part when something was held for it still.
func TestTotalsHaveEachUnitOnce(t *testing.T) {
	x := Index{Units: []IndexUnit{
		{Unit: "b.service", Entries: 2, Bytes: 10, Lost: []LostEntry{{Name: "x"}}},
		{Unit: "a.service", Lost: []LostEntry{{Name: "x"}, {Name: "y"}}},
		{Unit: "b.service", Entries: 3, Bytes: 5, Lost: []LostEntry{{Name: "y"}}},
	}}
	want := []Total{{Unit: "b.service", Entries: 5, Bytes: 15, Lost: 2}, {Unit: "a.service", Lost: 2}}
	if diff := cmp.Diff(want, x.Totals()); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
}
