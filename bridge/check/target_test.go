// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/kho/image"
)

// sampleFile is one of the test data of kho/image; vmlinux is a small file that looks
// like a kernel of Linux 7.2.
func sampleFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../kho/image/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// override begins the configuration of a kernel that goes by its own command line alone.
const override = "CONFIG_CMDLINE_BOOL=y\nCONFIG_CMDLINE_OVERRIDE=y\nCONFIG_CMDLINE="

func gzipped(t *testing.T, text string) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write([]byte(text))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// configured is a kernel with more in its configuration.
func configured(t *testing.T, kernel []byte, more string) []byte {
	t.Helper()
	before, from, _ := bytes.Cut(kernel, []byte("IKCFG_ST"))
	old, after, found := bytes.Cut(from, []byte("IKCFG_ED"))
	if !found {
		t.Fatal("the kernel has no configuration")
	}
	packed := gzipped(t, string(sampleFile(t, "config"))+more)
	room := make([]byte, max(0, len(old)-len(packed))) // the rest is not to move down
	return slices.Concat(before, []byte("IKCFG_ST"), packed, []byte("IKCFG_ED"), room, after)
}

func TestCheckLooksAtTheKernelThatIsNamed(t *testing.T) {
	sample := sampleFile(t, "vmlinux")
	read, err := image.Read(t.Context(), bytes.NewReader(sample), int64(len(sample)))
	if err != nil {
		t.Fatal(err)
	}
	cmdline := func(s string) *string { return &s }
	on := cmdline("kho=1 liveupdate=on")
	older := bytes.ReplaceAll(sample, []byte("luo-v5\x00"), []byte("luo-v4\x00"))
	older = bytes.ReplaceAll(older, []byte("#1"), []byte("#2"))
	with := func(config string) []byte { return configured(t, sample, config+"\n") }
	tests := map[string]struct {
		image   []byte
		cmdline *string
		banner  string
		outcome check.Outcome
		want    []string
	}{
		"the same":               {sample, on, read.Banner, check.Carried, nil},
		"no command line":        {sample, nil, read.Banner, check.Carried, []string{"with which command line k is booted cannot be told"}},
		"an empty one":           {sample, cmdline(""), read.Banner, check.Impossible, []string{"the next kernel's command line has no kho=on and no liveupdate=on"}},
		"one switch":             {sample, cmdline("kho=on liveupdate=0"), read.Banner, check.Impossible, []string{"no liveupdate=on"}},
		"kho=on without a word":  {with("CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y"), cmdline("liveupdate=on"), read.Banner, check.Carried, nil},
		"on by what is built in": {with(override + `"kho=on liveupdate=on"`), nil, read.Banner, check.Carried, nil},
		"off by what is built in": {with(override + `"kho=on"`), on, read.Banner, check.Impossible, []string{
			"the next kernel goes by nothing but the command line that is built in (CONFIG_CMDLINE_OVERRIDE=y), which has no liveupdate=on"}},
		"another format": {older, on, read.Banner, check.Impossible, []string{"hands over luo-v5, and kernel 7.2.12-sample reads only luo-v4"}},
		"not known":      {sample, on, runningBanner, check.Lossy, []string{"kho format", "luo format", "memfd format"}},
		"no kernel":      {[]byte(strings.Repeat("text", 1000)), on, read.Banner, check.Impossible, []string{"not a Linux kernel"}},
		"too large":      {append(bytes.Clone(sample), make([]byte, 65<<20)...), on, read.Banner, check.Carried, []string{"the kernel takes 65 MiB, and no area that kexec loads into has more than 64 MiB"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := newChecked(t)
			c.root["sys/kernel/kexec_loaded"].Data = []byte("0\n")
			c.root["proc/version"].Data = []byte(test.banner + "\n")
			if test.banner == read.Banner {
				c.root["proc/sys/kernel/osrelease"].Data = []byte(read.Release + "\n")
				c.root["boot/vmlinuz-"+read.Release] = &fstest.MapFile{Data: sample}
			}
			found := c.run(t, &check.Target{Name: "k", Image: bytes.NewReader(test.image), Size: int64(len(test.image)), Cmdline: test.cmdline})
			got := problems(found)
			for i := range min(len(got), len(test.want)) {
				if !strings.Contains(got[i], test.want[i]) {
					t.Errorf("got %q, want %q", got[i], test.want[i])
				}
				if remedy := found.Problems[i].Remedy; strings.Contains(got[i], "built in") && strings.HasPrefix(remedy, "Give it") {
					t.Errorf("%q: %q would not help", got[i], remedy)
				}
			}
			if len(got) != len(test.want) || found.Outcome != test.outcome {
				t.Errorf("%s %q, want %s with %d problems", found.Outcome, got, test.outcome, len(test.want))
			}
		})
	}
}
