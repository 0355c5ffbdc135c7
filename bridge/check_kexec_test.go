// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
)

func TestKexecLoadsAndStartsWhatTheCheckLetsPass(t *testing.T) {
	dir := t.TempDir()
	image, initrd := filepath.Join(dir, "image"), filepath.Join(dir, "initrd")
	for _, name := range []string{image, initrd} {
		if err := os.WriteFile(name, []byte(filepath.Base(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("broken")
	all := []string{"check image x", "report", "load image initrd x", "start"}
	o := bridge.KexecOptions{Kernel: image, Initrd: initrd, Cmdline: "x"}
	forced := o
	forced.Force = true
	tests := map[string]struct {
		options bridge.KexecOptions
		outcome bridge.Outcome
		fail    string
		did     []string
		err     error
	}{
		"an image":           {o, bridge.Carried, "", all, nil},
		"no initrd":          {bridge.KexecOptions{Kernel: image, Cmdline: "x"}, bridge.Carried, "", []string{"check image x", "report", "load image  x", "start"}, nil},
		"the loaded one":     {bridge.KexecOptions{}, bridge.Carried, "", []string{"check", "report", "start"}, nil},
		"a loss":             {o, bridge.Lossy, "", all[:2], bridge.ErrRefused},
		"a loss of a loaded": {bridge.KexecOptions{}, bridge.Lossy, "", []string{"check", "report"}, bridge.ErrRefused},
		"the impossible":     {o, bridge.Impossible, "", all[:2], bridge.ErrRefused},
		"forced":             {forced, bridge.Impossible, "", all, nil},
		"no check":           {forced, bridge.Carried, "check", all[:1], broken},
		"no report":          {o, bridge.Carried, "report", all[:2], broken},
		"no loading":         {o, bridge.Carried, "load", all[:3], broken},
		"no start":           {o, bridge.Carried, "start", all, broken},
		"no image":           {bridge.KexecOptions{Kernel: dir + "/none"}, bridge.Carried, "", nil, fs.ErrNotExist},
		"no such initrd":     {bridge.KexecOptions{Kernel: image, Initrd: dir + "/none"}, bridge.Carried, "", nil, fs.ErrNotExist},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var did []string
			do := func(what, details string) error {
				did = append(did, what+details)
				if what == test.fail {
					return broken
				}
				return nil
			}
			k := bridge.Kexec{
				Check: func(_ context.Context, target *bridge.Target) (*bridge.Check, error) {
					details := ""
					if target != nil {
						data, err := io.ReadAll(io.NewSectionReader(target.Image, 0, target.Size))
						if err != nil {
							return nil, err
						}
						details = " " + string(data) + " " + *target.Cmdline
					}
					return &bridge.Check{Outcome: test.outcome}, do("check", details)
				},
				Load: func(kernel, initrd *os.File, cmdline string) error {
					return do("load", " "+contentsOf(t, kernel)+" "+contentsOf(t, initrd)+" "+cmdline)
				},
				Start: func() error { return do("start", "") },
			}
			err := k.Run(t.Context(), test.options, func(*bridge.Check) error { return do("report", "") })
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Errorf("%v, want %v", err, test.err)
			}
			if diff := cmp.Diff(test.did, did); diff != "" {
				t.Errorf("what was done (-want +got):\n%s", diff)
			}
		})
	}
}

func contentsOf(t *testing.T, f *os.File) string {
	t.Helper()
	if f == nil {
		return ""
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
