// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/units"
)

func TestFeaturesAreThoseOfTheMachine(t *testing.T) {
	on := func() check.Features {
		return check.Features{
			Kernel: check.KernelFeatures{
				Release: "7.2.13", LiveUpdate: new(true), LiveUpdateNumber: new(uint64(0)), Seals: new(true),
			},
			Systemd:    check.SystemdFeatures{Version: "257.13-1", Carries: new(false)},
			Directives: check.Directives{Carried: []string{"memfd", "file on tmpfs without a name"}, By: "fdbridge"},
		}
	}
	const (
		config   = "it is not known whether kernel "
		disabled = "Live update is off: this kernel offers no live update: there is no /dev/liveupdate, and no liveupdate=on"
		masked   = "fdbridge-preserve.service is masked. Call systemctl unmask"
	)
	mask := func(c *checked) { c.states[bridge.PreserveUnit] = units.State{Load: "masked"} }
	for name, test := range map[string]struct {
		change func(c *checked)
		want   func(f *check.Features)
		notes  []string
	}{
		"live update is on": {func(*checked) {}, func(*check.Features) {}, []string{config}},
		"a kernel that says what it is built with": {func(c *checked) {
			c.root["proc/config.gz"] = &fstest.MapFile{Data: sampleFile(t, "config.gz")}
		}, func(f *check.Features) { f.Kernel.Memfd = new(true) }, nil},
		"an older kernel": {func(c *checked) {
			c.root["proc/sys/kernel/osrelease"].Data = []byte("6.19.2-arch1\n")
		}, func(f *check.Features) {
			f.Kernel.Release, f.Kernel.Seals = "6.19.2-arch1", new(false)
			f.Kernel.SessionFiles, f.Kernel.Sessions = new(128), new(819)
		}, []string{config}},
		"live update is off": {func(c *checked) {
			delete(c.root, "dev/liveupdate")
			c.root["proc/cmdline"].Data = []byte("kho=on\n")
		}, func(f *check.Features) {
			f.Kernel.LiveUpdate, f.Kernel.Memfd, f.Kernel.Seals = new(false), new(false), new(false)
			f.Directives = check.Directives{}
		}, []string{disabled}},
		"the service manager carries stores": {func(c *checked) { c.carries = true }, func(f *check.Features) {
			f.Systemd.Carries = new(true)
			f.Directives.Carried = append(f.Directives.Carried, "luo_session")
		}, []string{config}},
		"fdbridge is masked": {mask, func(f *check.Features) { f.Directives = check.Directives{} }, []string{config, masked}},
		"fdbridge is masked, and the service manager carries stores": {func(c *checked) {
			mask(c)
			c.carries = true
		}, func(f *check.Features) {
			f.Systemd.Carries = new(true)
			f.Directives.By, f.Directives.Carried = "systemd", append(f.Directives.Carried, "luo_session")
		}, []string{config, masked}},
		"the service manager is not to be asked": {func(c *checked) { c.stores.err = errors.New("only root may\nask PID 1") },
			func(f *check.Features) { f.Systemd = check.SystemdFeatures{} },
			[]string{config, "only root may; ask PID 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChecked(t)
			test.change(c)
			got, err := c.Features(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := on()
			test.want(&want)
			if diff := gocmp.Diff(&want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(check.Features{}, "Version", "Notes")); diff != "" {
				t.Errorf("features (-want +got):\n%s", diff)
			}
			if len(got.Notes) != len(test.notes) {
				t.Fatalf("notes %q, want %q", got.Notes, test.notes)
			}
			for i, note := range test.notes {
				if !strings.Contains(got.Notes[i], note) {
					t.Errorf("note %q, want %q", got.Notes[i], note)
				}
			}
		})
	}
}

func TestFeaturesNeedProc(t *testing.T) {
	c := newChecked(t)
	c.Root = fstest.MapFS{}
	if f, err := c.Features(t.Context()); err == nil {
		t.Errorf("Features: %+v without a /proc", f)
	}
}
