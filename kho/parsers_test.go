// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSwitchReadsTheCommandLineAsTheKernelDoes(t *testing.T) {
	tests := []struct {
		cmdline   string
		on, given bool
	}{
		{"", false, false},
		{"quiet", false, false},
		{"kho=on", true, true},
		{"root=/dev/vda kho=on quiet\n", true, true},
		{"kho=off", false, true},
		{"kho=1", true, true},
		{"kho=Yes", true, true},
		{"kho=enabled", true, true},
		{"kho=0", false, true},
		{"kho=disable", false, true},
		{"kho=o", false, false},
		{"kho=2", false, false},
		{"kho=", false, false},
		{"kho", false, false},
		{"kho=on kho=off", false, true},
		{"kho=on kho=what kho", true, true},
		{"xkho=on kho.x=on KHO=on", false, false},
		{`kho="on"`, true, true},
		{`"kho=on"`, true, true},
		{`dyndbg="file x kho=on"`, false, false},
		{`dyndbg="file x" kho=on`, true, true},
		{"rdinit=/init -- kho=on", false, false},
		{"--x kho=on", true, true},
		{"a\tkho=on\n", true, true},
		{"a\xa0kho=on", true, true},
	}
	for _, tt := range tests {
		if on, given := parseSwitch(tt.cmdline, "kho"); on != tt.on || given != tt.given {
			t.Errorf("parseSwitch(%q) = %v, %v; want %v, %v", tt.cmdline, on, given, tt.on, tt.given)
		}
	}
}

func TestParseLogReadsOnlyWhatTheKernelSays(t *testing.T) {
	all := logFacts{whole: true, handover: true, number: 3, previous: "7.2.12-custom"}
	tests := []struct {
		name, log string
		want      logFacts
	}{
		{"nothing", "", logFacts{}},
		{"a handover", handoverLog, all},
		{"no time stamps", noTimes(handoverLog), all},
		{"callers beside the time stamps", strings.ReplaceAll(handoverLog, "] ", "][    T1] "), all},
		{"a banner that is not the first line", "<6>Booting Linux on physical CPU 0x0\n" + bootLog, logFacts{whole: true}},
		{"lines of user space", strings.ReplaceAll(handoverLog, "<6>", "<14>"), logFacts{whole: true}},
		{"lines without a level", strings.ReplaceAll(handoverLog, "<6>", ""), logFacts{whole: true}},
		{"lines that only quote it", strings.ReplaceAll(handoverLog, "] ", "] x: "), logFacts{}},
		{"a line that is cut", strings.TrimSuffix(handoverLog, " (count 4)\n"),
			logFacts{whole: true, handover: true, number: 3}},
		{"a number that is none", "<6>luo: Retrieved live update data, liveupdate number: -1\n", logFacts{}},
		{"a release with spaces", "<6>KHO: exec from: a (count b (count 12)\n", logFacts{previous: "a (count b"}},
		{"kho unknown", `<5>Unknown kernel command line parameters "a=b kho=1 c", will be passed` + "\n",
			logFacts{khoUnknown: true}},
		{"something else unknown", `<5>Unknown kernel command line parameters "splash", will be passed` + "\n", logFacts{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, parseLog(tt.log), cmp.AllowUnexported(logFacts{})); diff != "" {
				t.Errorf("parseLog (-want +got):\n%s", diff)
			}
		})
	}
}

func noTimes(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		level, rest, _ := strings.Cut(line, "[")
		_, msg, _ := strings.Cut(rest, "] ")
		b.WriteString(level + msg)
	}
	return b.String()
}

func TestParseLUORefusesOtherLayouts(t *testing.T) {
	if n, err := parseLUO(luoBlob("luo-v5", 1<<40)); n != 1<<40 || err != nil {
		t.Errorf("parseLUO = %d, %v", n, err)
	}
	for _, tt := range []struct {
		blob []byte
		says string
	}{
		{nil, "0 bytes"},
		{luoBlob("luo-v5", 1)[:31], "31 bytes"},
		{luoBlob("luo-v6", 1), `"luo-v6"`},
		{luoBlob("luo-v5x", 1), `"luo-v5x"`},
		{luoBlob("luo-v5", 0), "number 0"},
	} {
		if _, err := parseLUO(tt.blob); !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("parseLUO(%q): %v, want an error that says %s", tt.blob, err, tt.says)
		}
	}
}

func TestParseMetadataRefusesOtherLayouts(t *testing.T) {
	long := strings.Repeat("r", 65) // fills the field, without a NUL
	for _, release := range []string{"7.2.12", long} {
		if got, err := parseMetadata(metadataBlob(1, release)); got != release || err != nil {
			t.Errorf("parseMetadata = %q, %v; want %q", got, err, release)
		}
	}
	for _, tt := range []struct {
		blob []byte
		says string
	}{
		{[]byte{1, 0, 0}, "3 bytes"},
		{metadataBlob(2, "7.2.12"), "version 2"},
		{metadataBlob(1, "7.2.12")[:72], "72 bytes"},
		{metadataBlob(1, ""), "no kernel release"},
	} {
		if _, err := parseMetadata(tt.blob); !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("parseMetadata(%q): %v, want an error that says %s", tt.blob, err, tt.says)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(golden(f, "manifest-v1.json"))
	f.Add(golden(f, "manifest-v1-unknown.json"))
	f.Add(golden(f, "manifest-v1-owner.json"))
	f.Add([]byte(`{"format":"fdbridge.manifest","version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			return
		}
		again(t, data, m, (*Manifest).Encode, ParseManifest)
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add(golden(f, "index-v1.json"))
	f.Add([]byte(`{"format":"fdbridge.index","version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := ParseIndex(data)
		if err != nil {
			return
		}
		again(t, data, x, (*Index).Encode, ParseIndex)
	})
}

// again checks that v, which was read from data, is the same after it was written
// and read, and that it did not grow beyond what escapes in strings explain.
func again[T any](t *testing.T, data []byte, v T, encode func(T) ([]byte, error), parse func([]byte) (T, error)) {
	t.Helper()
	if !json.Valid(data) {
		t.Errorf("this was read, but is not JSON: %q", data)
	}
	encoded, err := encode(v)
	if err != nil {
		t.Fatalf("what was read cannot be written: %v", err)
	}
	if len(encoded) > 6*len(data)+1 {
		t.Errorf("%d bytes became %d", len(data), len(encoded))
	}
	back, err := parse(encoded)
	if err != nil {
		t.Fatalf("what was written cannot be read: %v\n%s", err, encoded)
	}
	if diff := cmp.Diff(v, back); diff != "" {
		t.Errorf("after writing and reading (-want +got):\n%s", diff)
	}
	second, err := encode(back)
	if err != nil || string(second) != string(encoded) {
		t.Errorf("written twice it differs, %v:\n%s\n%s", err, encoded, second)
	}
}

func FuzzParseLUO(f *testing.F) {
	f.Add(luoBlob("luo-v5", 3))
	f.Add(metadataBlob(1, "7.2.12"))
	f.Fuzz(func(t *testing.T, blob []byte) {
		number, err := parseLUO(blob)
		if err == nil && (string(blob[:7]) != "luo-v5\x00" || number != binary.NativeEndian.Uint64(blob[8:])) {
			t.Errorf("number %d from %q", number, blob)
		}
		release, err := parseMetadata(blob)
		if err == nil && (release == "" || len(release) > 65 || strings.Contains(release, "\x00")) {
			t.Errorf("release %q from %q", release, blob)
		}
	})
}

func FuzzParseLog(f *testing.F) {
	f.Add(handoverLog)
	f.Add(noTimes(handoverLog))
	f.Fuzz(func(t *testing.T, log string) {
		facts := parseLog(log)
		if len(facts.previous) > len(log) {
			t.Errorf("previous is %q", facts.previous)
		}
		// Lines of user space in front and behind change nothing.
		const user = "<14>[    1.000000] KHO: exec from: evil (count 1)\n"
		if got := parseLog(user + strings.TrimSuffix(log, "\n") + "\n" + user); got != facts {
			t.Errorf("user space changed %+v to %+v", facts, got)
		}
	})
}

func FuzzParseCommandLine(f *testing.F) {
	f.Add(`quiet "kho=on" dyndbg="a b" -- kho=off`)
	f.Fuzz(func(t *testing.T, cmdline string) {
		on, given := parseSwitch(cmdline, "kho")
		if on && !given {
			t.Error("on, but not given")
		}
		if given && !strings.Contains(cmdline, "kho=") {
			t.Error("given, but not there")
		}
		// Whatever else is there, the last one counts.
		if !strings.Contains(cmdline, `"`) && !slices.Contains(slices.Collect(args(cmdline)), "--") {
			if on, given := parseSwitch(cmdline+" kho=on", "kho"); !on || !given {
				t.Error("kho=on at the end does not count")
			}
		}
	})
}

func TestReleaseOf(t *testing.T) {
	order := []string{"none", "6.9.1", "6.19.8-1-amd64", "7.0.0-rc3", "7.2", "7.10.1"}
	for i, a := range order {
		for j, b := range order {
			if got := ReleaseOf(a).Before(ReleaseOf(b)); got != (i < j) {
				t.Errorf("%s before %s: %t", a, b, got)
			}
		}
	}
}
