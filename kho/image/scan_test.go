// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/kho"
)

// found returns all formats that a kernel with this content has.
func found(t *testing.T, content string) []string {
	t.Helper()
	k, err := read(vmlinux("\x00", content, "\x00", sampleBanner, "\n\x00"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, part := range Parts() {
		all = append(all, k.Formats[part].Value...)
	}
	return all
}

func TestFormatsAreWholeStrings(t *testing.T) {
	tests := map[string]struct {
		content string
		want    []string
	}{
		"none":                        {"Kernel panic\x00", nil},
		"of 7.2":                      {"kho-v4\x00luo-v5\x00memfd-v2\x00", []string{"kho-v4", "luo-v5", "memfd-v2"}},
		"of 6.19":                     {"luo-v1\x00luo-session-v2\x00luo-flb-v1\x00", []string{"luo-flb-v1", "luo-session-v2", "luo-v1"}},
		"two of a kind":               {"memfd-v2\x00memfd-v10\x00", []string{"memfd-v10", "memfd-v2"}},
		"twice the same":              {"kho-v4\x00kho-v4\x00", []string{"kho-v4"}},
		"one put behind another":      {"luo-v5;block-v1\x00luo-v3-kho-block-v1\x00luo-v5 x\x00", []string{"luo-v3-kho-block-v1", "luo-v5;block-v1"}},
		"after a pointer":             {"\xc0\x28\xa3\x81\xff\xff\xff\xffmemfd-v2\x00", []string{"memfd-v2"}},
		"end of a longer string":      {"no kho-v4\x00akho-v4\x00~kho-v4\x00", nil},
		"start of a longer string":    {"kho-v4 \x00kho-v4a\x00kho-v4\n\x00", nil},
		"no version":                  {"kho-v\x00kho-\x00kho-x4\x00", nil},
		"another name":                {"kho-test-v1\x00kho-session-v1\x00memfd-flb-v1\x00luo-other-v1\x00", nil},
		"a version that never ends":   {"kho-v" + strings.Repeat("1", maxFormat) + "\x00", nil},
		"one after what is not quite": {"luo-luo-v5\x00luo-v5\x00", []string{"luo-v5"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, found(t, test.content)); diff != "" {
				t.Errorf("formats (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNothingIsLostBetweenWindows puts things where a window ends, or ends to be
// looked at.
func TestNothingIsLostBetweenWindows(t *testing.T) {
	config := configStart + string(testdata(t, "config.gz")) + configEnd
	want := sampleKernel()
	for _, edge := range []int{scanWindow - scanReach, scanWindow, 2 * (scanWindow - scanReach)} {
		for _, thing := range []string{"luo-v5\x00", sampleBanner + "\n\x00", config} {
			for _, before := range []int{-2, -1, 0, 1, 2, 8, len(thing) - 1, len(thing), len(thing) + 1} {
				b := make([]byte, 3*scanWindow)
				copy(b, vmlinux("\x00kho-v4\x00memfd-v2\x00"))
				copy(b[edge-before:], thing)
				rest := sampleBanner + "\n\x00luo-v5\x00" + config
				copy(b[len(b)-len(rest):], strings.Replace(rest, thing, "", 1))
				got, err := read(b)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("%.8q at %d (-want +got):\n%s", thing, edge-before, diff)
				}
			}
		}
	}
}

func TestBannerIsTheOneWithABuildNumber(t *testing.T) {
	tests := map[string]struct {
		content, release, banner string
	}{
		"first of two": {sampleBanner + "\n\x00Linux version 6 (b) #2\n\x00", "7.2.12-sample", sampleBanner},
		"first without number": {strings.Replace(sampleBanner, "#1", "#", 1) + "\n\x00" + sampleBanner + "\n\x00",
			"7.2.12-sample", sampleBanner},
		"of another use": {"Linux version %s (%s) #1\n\x00" + sampleBanner + "\n\x00", "7.2.12-sample", sampleBanner},
		"without release or version": {"Linux version  (b) #1\n\x00Linux version 6 (b) #\n\x00Linux version 6 (b)\n\x00" + sampleBanner + "\n\x00",
			"7.2.12-sample", sampleBanner},
		"too long": {"Linux version 6 (b) #2" + strings.Repeat("x", maxBanner) + "\n\x00" + sampleBanner + "\n\x00",
			"7.2.12-sample", sampleBanner},
		"without line": {sampleBanner + "\x00Linux version 6.1 (b) #1-Distro x\n\x00", "6.1", "Linux version 6.1 (b) #1-Distro x"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			k, err := read(vmlinux("\x00", test.content))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{test.release, test.banner}, []string{k.Release, k.Banner}); diff != "" {
				t.Errorf("release and banner (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEmbeddedConfig(t *testing.T) {
	good := string(testdata(t, "config.gz"))
	embedded := func(b string) string { return "\x00" + configStart + b + configEnd }
	small := Config{"CONFIG_X": "y"}
	tests := map[string]struct {
		content string
		want    kho.Fact[Config]
	}{
		"none":       {"", kho.Fact[Config]{Why: noConfig}},
		"only words": {"IKCFG_ST is where it starts", kho.Fact[Config]{Why: noConfig}},
		"whole":      {embedded(good), sampleKernel().Config},
		"first of two": {embedded(string(gzipped([]byte("CONFIG_X=y\n")))) + embedded(good),
			kho.Fact[Config]{Known: true, Value: small, Source: SourceImage}},
		"without end": {strings.TrimSuffix(embedded(good), configEnd),
			kho.Fact[Config]{Why: "the embedded configuration has no end"}},
		"end too late": {embedded(good + strings.Repeat("\x00", scanReach)),
			kho.Fact[Config]{Why: "the embedded configuration has no end"}},
		"cut off": {embedded(good[:len(good)-9]),
			kho.Fact[Config]{Why: "the embedded configuration cannot be read: unexpected EOF"}},
		"no gzip header": {embedded(good[:3]),
			kho.Fact[Config]{Why: "the embedded configuration cannot be read: unexpected EOF"}},
		"no options": {embedded(string(gzipped([]byte("#\n# nothing\n")))),
			kho.Fact[Config]{Why: "the embedded configuration cannot be read: it has no options"}},
		"too long": {embedded(string(gzipped(make([]byte, maxConfig+1)))),
			kho.Fact[Config]{Why: "the embedded configuration cannot be read: it unpacks to more than 8388608 bytes"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			k, err := read(vmlinux(test.content, "\x00", sampleBanner, "\n\x00"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, k.Config); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConfigHasWhatKconfigWrites(t *testing.T) {
	got, err := parseConfig("#\n# Linux/x86 7.2.12 Kernel Configuration\n#\nCONFIG_A=y\nCONFIG_B=m\n" +
		"# CONFIG_C is not set\nCONFIG_D=\"a=b # c\"\nCONFIG_E=0x1000\n\n# end of CONFIG_F\nCONFIG_G=\"is not set\"\nCONFIG_H=y")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_C": "n", "CONFIG_D": `"a=b # c"`, "CONFIG_E": "0x1000",
		"CONFIG_G": `"is not set"`, "CONFIG_H": "y"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestAKernelThatKnowsTooManyFormatsIsDamaged(t *testing.T) {
	var content strings.Builder
	for i := range maxFormats + 1 {
		fmt.Fprintf(&content, "\x00kho-v%d", i)
	}
	if _, err := read(vmlinux(content.String(), "\x00", sampleBanner, "\n\x00")); !errors.Is(err, ErrDamaged) {
		t.Errorf("Read: %v, want ErrDamaged", err)
	}
}
