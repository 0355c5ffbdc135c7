// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestManifestVersion1IsWhatItWas(t *testing.T) {
	for name, example := range map[string]*Manifest{
		"manifest-v1.json": exampleManifest(),
		"manifest-v1-owner.json": {Unit: "a.service", Origin: exampleOrigin(), Entries: []Entry{
			{Name: "state", Kind: KindLUO, Token: 1, Type: "memfd", Size: 4096, Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o600, UID: 1000, GID: 100},
		}},
	} {
		want := golden(t, name)
		got, err := example.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("Encode %s (-want +got):\n%s", name, diff)
		}
		m, err := ParseManifest(want)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(example, m); diff != "" {
			t.Errorf("ParseManifest of %s (-want +got):\n%s", name, diff)
		}
	}
}

func TestManifestKeepsWhatItDoesNotKnow(t *testing.T) {
	want := golden(t, "manifest-v1-unknown.json")
	m, err := ParseManifest(want)
	if err != nil {
		t.Fatal(err)
	}
	if e := &m.Entries[0]; e.Kind != "pipe-bytes" || e.Token != 0 || e.Size != 7 {
		t.Errorf("the entry of unknown kind reads as %+v", e)
	}
	got, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// Members of an object have no order.
	var gotValue, wantValue any
	if err := errors.Join(json.Unmarshal(got, &gotValue), json.Unmarshal(want, &wantValue)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantValue, gotValue); diff != "" {
		t.Errorf("after reading and writing (-want +got):\n%s", diff)
	}
}

func TestManifestRidesInASealedMemfd(t *testing.T) {
	f, err := exampleManifest().Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = f.Do(func(raw int) error {
		const want = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		if seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); seals&want != want {
			t.Errorf("seals are %#x, %v", seals, err)
		}
		if flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the memfd is not close-on-exec: %v", err)
		}
		return nil
	})
	if pos := position(t, f); pos != 0 {
		t.Errorf("the memfd's position is %d", pos)
	}
	m, err := ReadManifest(f, exampleManifest().Unit)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleManifest(), m); diff != "" {
		t.Errorf("ReadManifest (-want +got):\n%s", diff)
	}
}

func TestReadManifestLeavesThePositionAlone(t *testing.T) {
	data := golden(t, "manifest-v1.json")
	f := fdtest.MemfdWith(t, string(data))
	for range 2 {
		if _, err := ReadManifest(f, exampleManifest().Unit); err != nil {
			t.Fatal(err)
		}
	}
	if pos := position(t, f); pos != int64(len(data)) {
		t.Errorf("position is %d, was %d", pos, len(data))
	}
}

func TestReadManifestRefuses(t *testing.T) {
	const unit = "a.service"
	sparse := fdtest.Memfd(t)
	_ = sparse.Do(func(raw int) error { return unix.Ftruncate(raw, MaxManifest+1) })
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	pipe := fd.New(ends[0])
	defer pipe.Close()
	defer unix.Close(ends[1])
	closed := fdtest.Memfd(t)
	_ = closed.Close()

	tests := []struct {
		name string
		f    *fd.FD
		want error
		says string
	}{
		{"another unit's", fdtest.MemfdWith(t, string(golden(t, "manifest-v1.json"))), ErrUnit, `not "a.service"`},
		{"an empty file", fdtest.Memfd(t), ErrFormat, "truncated"},
		{"a file that is too large", sparse, ErrTooLarge, "16777217 bytes"},
		{"a pipe", pipe, ErrFormat, "not a memfd"},
		{"a closed fd", closed, fd.ErrClosed, "closed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadManifest(tt.f, unit)
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Fatalf("ReadManifest: %v; want %v that says %q", err, tt.want, tt.says)
			}
			if !strings.HasPrefix(err.Error(), "read manifest of a.service: ") {
				t.Errorf("the error does not name the unit: %v", err)
			}
		})
	}
}

func TestParseManifestRefuses(t *testing.T) {
	good := string(golden(t, "manifest-v1.json"))
	change := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("the golden manifest lacks %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	tests := []struct {
		name, data string
		want       error
		says       string
	}{
		{"nothing", "", ErrFormat, "truncated after byte 0"},
		{"no JSON", "hello", ErrFormat, "'h' where '{' is due"},
		{"a bad escape", change(`state`, `st\q`), ErrFormat, "in string escape"},
		{"a control character", change(`pipe"`, "pi\npe\""), ErrFormat, "in string literal"},
		{"a comma too many", change(`"flags":1,`, `"flags":1,,`), ErrFormat, `',' where '"' is due`},
		{"a comma before the end", change(`a pipe"}`, `a pipe",}`), ErrFormat, `'}' where '"' is due`},
		{"no comma", change(`"flags":1,`, `"flags":1`), ErrFormat, `'"' where ',' is due`},
		{"no colon", change(`"flags":1,`, `"flags" 1,`), ErrFormat, `where ':' is due`},
		{"a wrong bracket", change(`"0x140"]`, `"0x140"}`), ErrFormat, `'}' where ',' is due`},
		{"a leading zero", change(`"flags":1,`, `"flags":01,`), ErrFormat, "01 is not a whole number"},
		{"a bad unknown value", change(`"flags":1,`, `"new":tru,`), ErrFormat, "invalid character"},
		{"no object", "[1]", ErrFormat, `'[' where '{' is due`},
		{"null", "null", ErrFormat, `where '{' is due`},
		{"a truncated one", good[:len(good)/2], ErrFormat, "truncated"},
		{"trailing bytes", good + "x", ErrFormat, "behind the end"},
		{"a second one behind", good + good, ErrFormat, "behind the end"},
		{"an index", string(golden(t, "index-v1.json")), ErrFormat, `"fdbridge.index", not "fdbridge.manifest"`},
		{"version 2", change(`"version":1`, `"version":2`), ErrVersion, "version 2"},
		{"version 0", change(`"version":1`, `"version":0`), ErrVersion, "version 0"},
		{"version 2 with other members", `{"format":"fdbridge.manifest","version":2,"entries":{}}`, ErrVersion, "version 2"},
		{"no version", change(`"version":1,`, ``), ErrFormat, `"version" is missing`},
		{"a version in words", change(`"version":1`, `"version":"1"`), ErrFormat, "where a number is due"},
		{"a member twice", change(`"version":1`, `"version":1,"version":1`), ErrFormat, "twice"},
		{"another spelling", change(`"unit":`, `"Unit":`), ErrFormat, `"unit" is missing`},
		{"no entries", change(`"entries":`, `"Entries":`), ErrFormat, `"entries" is missing`},
		{"entries that are null", `{"format":"fdbridge.manifest","version":1,"unit":"a.service","identity":{},` +
			`"origin":{"boot_id":"","kernel":"","time":"2026-01-01T00:00:00Z"},"entries":null}`, ErrFormat, "is due"},
		{"no unit name", change(`"unit":"dev-`, `"unit":"dev/`), ErrFormat, "systemd does not allow"},
		{"local time", change(`25Z"`, `25+01:00"`), ErrFormat, "UTC"},
		{"token 0", change(`"token":1,`, `"token":0,`), ErrFormat, `"entries": number 0: "token": 0 is the token of the manifest`},
		{"another's session", change(`"token":1,`, `"token":1,"session":"systemd",`), ErrFormat, "not the name of a unit's session"},
		{"the index as a session", change(`"token":1,`, `"token":1,"session":"fdbridge",`), ErrFormat, "not the name of a unit's session"},
		{"a token below zero", change(`"token":1,`, `"token":-1,`), ErrFormat, "-1 is not a whole number"},
		{"a token that is too large", change(`"token":1,`, `"token":18446744073709551616,`), ErrFormat, "18446744073709551616 is not a whole number"},
		{"luo without a token", change(`"token":1,`, ``), ErrFormat, "no token"},
		{"lost with a token", change(`"kind":"lost",`, `"kind":"lost","token":9,`), ErrFormat, "lost but has token 9"},
		{"lost without a reason", change(`,"reason":"the kernel cannot carry a pipe"`, ``), ErrFormat, "no reason"},
		{"no kind", change(`"kind":"lost"`, `"kind":""`), ErrFormat, "no kind"},
		{"a size below zero", change(`"size":67108864`, `"size":-1`), ErrFormat, "-1 is not a whole number"},
		{"a size with an exponent", change(`"size":67108864`, `"size":1e3`), ErrFormat, "1e3 is not a whole number"},
		{"a size beyond 63 bits", change(`"size":67108864`, `"size":9223372036854775808`), ErrFormat, "too large"},
		{"flags beyond 32 bits", change(`"flags":32770`, `"flags":4294967296`), ErrFormat, "too large"},
		{"an unknown seal", change(`"grow"`, `"glue"`), ErrFormat, `"glue" is not the name of a seal`},
		{"a name with a colon", change(`"name":"state"`, `"name":"st:te"`), ErrFormat, "systemd does not allow"},
		{"a name with a tab", change(`"name":"state"`, `"name":"st\te"`), ErrFormat, "systemd does not allow"},
		{"a name with DEL", change(`"name":"state"`, `"name":"st\u007f"`), ErrFormat, "systemd does not allow"},
		{"a name of 256 bytes", change(`"name":"state"`, `"name":"`+strings.Repeat("n", 256)+`"`), ErrFormat, "256 bytes"},
		{"one that is too large", good + strings.Repeat(" ", MaxManifest), ErrTooLarge, "allowed are 16777216"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseManifest([]byte(tt.data))
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("ParseManifest: %v; want %v that says %q", err, tt.want, tt.says)
			}
		})
	}
}

func TestManifestIsRefusedTruncatedAnywhere(t *testing.T) {
	for _, name := range []string{"manifest-v1.json", "manifest-v1-unknown.json"} {
		good := bytes.TrimSpace(golden(t, name))
		for n := range good {
			_, err := ParseManifest(good[:n])
			if !errors.Is(err, ErrFormat) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("the first %d bytes of %s: %v", n, name, err)
			}
		}
	}
}

func TestEncodeRefusesWhatNobodyCouldRead(t *testing.T) {
	tests := []struct {
		name string
		edit func(m *Manifest)
		want error
	}{
		{"no unit", func(m *Manifest) { m.Unit = "" }, ErrFormat},
		{"a unit name that is too long", func(m *Manifest) { m.Unit = strings.Repeat("u", 256) }, ErrFormat},
		{"another's session", func(m *Manifest) { m.Entries[1].Session = "systemd" }, ErrFormat},
		{"luo without a token", func(m *Manifest) { m.Entries[0].Token = 0 }, ErrFormat},
		{"a size below zero", func(m *Manifest) { m.Entries[0].Size = -1 }, ErrFormat},
		{"a position below zero", func(m *Manifest) { m.Entries[0].Position = -1 }, ErrFormat},
		{"a name with a colon", func(m *Manifest) { m.Entries[0].Name = ":" }, ErrFormat},
		{"the year 10000", func(m *Manifest) { m.Origin.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, ErrFormat},
		{"too much", func(m *Manifest) { m.Entries[0].Type = strings.Repeat("t", MaxManifest) }, ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := exampleManifest()
			tt.edit(m)
			if f, err := m.Memfd(); !errors.Is(err, tt.want) {
				t.Errorf("Memfd: %v, %v; want %v", f, err, tt.want)
			}
		})
	}
}

func TestManifestTakesAllNamesThatSystemdAllows(t *testing.T) {
	var all []byte
	for c := byte(' '); c <= '~'; c++ {
		if c != ':' {
			all = append(all, c)
		}
	}
	m := exampleManifest()
	m.Unit = strings.Repeat("u", 247) + ".service"
	m.Entries[0].Name = string(all)
	m.Entries[1].Name = strings.Repeat("n", 255)
	m.Entries[2].Name = m.Entries[1].Name // names need not be unique
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got); diff != "" {
		t.Errorf("after writing and reading (-want +got):\n%s", diff)
	}
}

func TestManifestMayBeEmptyOrWithoutTokens(t *testing.T) {
	lost := Entry{Kind: KindLost, Type: "socket", Reason: "no handler"}
	for _, entries := range [][]Entry{nil, {lost, lost}} {
		want := &Manifest{Unit: "a.service", Origin: exampleOrigin(), Entries: entries}
		data, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseManifest(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after writing and reading (-want +got):\n%s", diff)
		}
	}
}

func TestSealsHaveNamesAndTheRestIsOneNumber(t *testing.T) {
	tests := []struct {
		seals Seals
		want  []string
	}{
		{0, nil},
		{0x3f, []string{"seal", "shrink", "grow", "write", "future-write", "exec"}},
		{unix.F_SEAL_WRITE | 0x40 | 0x80000000, []string{"write", "0x80000040"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, tt.seals.Names()); diff != "" {
			t.Errorf("names of %#x (-want +got):\n%s", uint32(tt.seals), diff)
		}
		var back Seals
		for _, name := range tt.want {
			bits, ok := sealBits(name)
			if !ok {
				t.Errorf("%q is not a seal", name)
			}
			back |= bits
		}
		if back != tt.seals {
			t.Errorf("%v reads as %#x, want %#x", tt.want, uint32(back), uint32(tt.seals))
		}
	}
	for _, name := range []string{"", "glue", "40", "0x", "0x1ffffffff", "0x-1", "0x_1"} {
		if bits, ok := sealBits(name); ok {
			t.Errorf("%q reads as seals %#x", name, uint32(bits))
		}
	}
}

func manyEntries(n int) *Manifest {
	m := exampleManifest()
	m.Entries = nil
	for i := range n {
		m.Entries = append(m.Entries, Entry{Name: fmt.Sprintf("state-%d", i), Kind: KindLUO, Token: uint64(i + 1),
			Type: "memfd", Size: 4096, Position: 17, Seals: 0xf, Flags: 0o100002})
	}
	return m
}

func BenchmarkWriteManifest(b *testing.B) {
	for _, n := range []int{20, 1000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			m := manyEntries(n)
			b.ReportAllocs()
			for b.Loop() {
				f, err := m.Memfd()
				if err != nil {
					b.Fatal(err)
				}
				_ = f.Close()
			}
		})
	}
}

func BenchmarkReadManifest(b *testing.B) {
	for _, n := range []int{20, 1000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			m := manyEntries(n)
			f, err := m.Memfd()
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ReadManifest(f, m.Unit); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Each known member counts, also those that are added one day.
func TestEqualManifestsSayTheSame(t *testing.T) {
	one := func() *Manifest { return manyEntries(2) }
	if !one().Equal(one()) {
		t.Error("a manifest is not equal to itself")
	}
	m := one()
	m.Entries = m.Entries[:1]
	others := map[string]*Manifest{"fewer entries": m}
	change := func(name string, of func(m *Manifest) reflect.Value) {
		m := one()
		switch v := of(m); {
		case v.CanInt():
			v.SetInt(v.Int() + 1)
		case v.CanUint():
			v.SetUint(v.Uint() + 1)
		case v.Kind() == reflect.String:
			v.SetString(v.String() + "x")
		default:
			t.Fatalf("%s is a %v", name, v.Type())
		}
		others[name] = m
	}
	change("Unit", func(m *Manifest) reflect.Value { return reflect.ValueOf(m).Elem().FieldByName("Unit") })
	if n := reflect.TypeFor[Manifest]().NumField(); n != 5 { // and these, without Origin and Unknown
		t.Errorf("a manifest has %d members", n)
	}
	for name, of := range map[string]func(m *Manifest) reflect.Value{
		"Identity": func(m *Manifest) reflect.Value { return reflect.ValueOf(&m.Identity).Elem() },
		"Entry":    func(m *Manifest) reflect.Value { return reflect.ValueOf(&m.Entries[1]).Elem() },
	} {
		typ := of(one()).Type()
		for i := range typ.NumField() {
			if typ.Field(i).Name != "Unknown" {
				change(name+"."+typ.Field(i).Name, func(m *Manifest) reflect.Value { return of(m).Field(i) })
			}
		}
	}
	for name, other := range others {
		if one().Equal(other) || other.Equal(one()) {
			t.Errorf("another %s is not seen", name)
		}
	}
}
