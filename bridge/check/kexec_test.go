// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/check"
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
	all := []string{"check image x", "report", "load image initrd x", "prepare", "start"}
	o := check.Options{Kernel: image, Initrd: initrd, Cmdline: "x"}
	forced := o
	forced.Force = true
	tests := map[string]struct {
		options check.Options
		outcome check.Outcome
		fail    string
		did     []string
		err     error
	}{
		"an image":           {o, check.Carried, "", all, nil},
		"no initrd":          {check.Options{Kernel: image, Cmdline: "x"}, check.Carried, "", []string{"check image x", "report", "load image  x", "prepare", "start"}, nil},
		"the loaded one":     {check.Options{}, check.Carried, "", []string{"check", "report", "prepare", "start"}, nil},
		"a loss":             {o, check.Lossy, "", all[:2], check.ErrRefused},
		"a loss of a loaded": {check.Options{}, check.Lossy, "", []string{"check", "report"}, check.ErrRefused},
		"the impossible":     {o, check.Impossible, "", all[:2], check.ErrRefused},
		"forced":             {forced, check.Impossible, "", all, nil},
		"no check":           {forced, check.Carried, "check", all[:1], broken},
		"no report":          {o, check.Carried, "report", all[:2], broken},
		"no loading":         {o, check.Carried, "load", all[:3], broken},
		"no start":           {o, check.Carried, "start", append(slices.Clone(all), "undo"), broken},
		"interrupted":        {o, check.Carried, "prepare", append(slices.Clone(all[:4]), "undo"), broken},
		"no image":           {check.Options{Kernel: dir + "/none"}, check.Carried, "", nil, fs.ErrNotExist},
		"no such initrd":     {check.Options{Kernel: image, Initrd: dir + "/none"}, check.Carried, "", nil, fs.ErrNotExist},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, interrupt := context.WithCancelCause(t.Context())
			defer interrupt(nil)
			var did []string
			do := func(what, details string) error {
				did = append(did, what+details)
				if what == test.fail {
					return broken
				}
				return nil
			}
			k := check.Kexec{
				Check: func(_ context.Context, target *check.Target) (*check.Result, error) {
					details := ""
					if target != nil {
						data, err := io.ReadAll(io.NewSectionReader(target.Image, 0, target.Size))
						if err != nil {
							return nil, err
						}
						details = " " + string(data) + " " + *target.Cmdline
					}
					return &check.Result{Outcome: test.outcome}, do("check", details)
				},
				Load: func(kernel, initrd *os.File, cmdline string) error {
					return do("load", " "+contentsOf(t, kernel)+" "+contentsOf(t, initrd)+" "+cmdline)
				},
				Prepare: func(context.Context) {
					if err := do("prepare", ""); err != nil {
						interrupt(err)
					}
				},
				Start: func() error { return do("start", "") },
				Undo: func(ctx context.Context) {
					interrupt(errors.New("whoever does not want to wait for it need not"))
					if did = append(did, "undo"); ctx.Err() != nil {
						t.Error("there is no time to undo it")
					}
				},
			}
			err := k.Run(ctx, test.options, func(*check.Result) error { return do("report", "") })
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
