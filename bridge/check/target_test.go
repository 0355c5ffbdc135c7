// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"bytes"
	"os"
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
	tests := map[string]struct {
		image   []byte
		cmdline *string
		banner  string
		outcome check.Outcome
		want    []string
	}{
		"the same":        {sample, on, read.Banner, check.Carried, nil},
		"no command line": {sample, nil, read.Banner, check.Carried, []string{"with which command line k is booted cannot be told"}},
		"an empty one":    {sample, cmdline(""), read.Banner, check.Impossible, []string{"the next kernel's command line has no kho=on and no liveupdate=on"}},
		"one switch":      {sample, cmdline("kho=on liveupdate=0"), read.Banner, check.Impossible, []string{"no liveupdate=on"}},
		"another format":  {older, on, read.Banner, check.Impossible, []string{"hands over luo-v5, and kernel 7.2.12-sample reads only luo-v4"}},
		"not known":       {sample, on, runningBanner, check.Lossy, []string{"kho format", "luo format", "memfd format"}},
		"no kernel":       {[]byte(strings.Repeat("text", 1000)), on, read.Banner, check.Impossible, []string{"not a Linux kernel"}},
		"too large":       {append(bytes.Clone(sample), make([]byte, 65<<20)...), on, read.Banner, check.Carried, []string{"the kernel takes 65 MiB, and no area that kexec loads into has more than 64 MiB"}},
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
			}
			if len(got) != len(test.want) || found.Outcome != test.outcome {
				t.Errorf("%s %q, want %s with %d problems", found.Outcome, got, test.outcome, len(test.want))
			}
		})
	}
}
