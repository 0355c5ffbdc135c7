// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho/image"
	"github.com/fdbridge/fdbridge/units"
)

// checked is a machine where a live update works.
type checked struct {
	*manager
	*bridge.Checker
	root   fstest.MapFS
	states map[string]units.State
}

func newChecked(t *testing.T) *checked {
	c := &checked{manager: newManager(t), root: rootFS("kho=on liveupdate=on",
		"dev/liveupdate", "", "sys/kernel/kexec_loaded", "1\n",
		"sys/kernel/debug/kho/out/scratch_len", "0x100000\n0x4000000\n0x200000\n",
		"proc/meminfo", "MemTotal:  2000000 kB\nMemAvailable:    1024 kB\n",
		"proc/version", runningBanner+"\n")}
	c.states = map[string]units.State{
		bridge.OwnUnit:          {Load: "loaded", Active: "active"},
		bridge.PreserveUnit:     {Load: "loaded", Active: "inactive"},
		"systemd-kexec.service": {Load: "loaded", Requires: []string{"shutdown.target", bridge.PreserveUnit}},
	}
	c.Checker = &bridge.Checker{
		Stores: c.manager, Duplicator: c.duplicator,
		State:     func(_ context.Context, unit string) (units.State, error) { return c.states[unit], nil },
		Excluded:  func(unit string) bool { return unit == "excluded.service" },
		Required:  func(unit string) bool { return unit == "required.service" },
		Root:      c.root,
		KernelLog: func() ([]byte, error) { return []byte(firstBootLog), nil },
	}
	return c
}

func (c *checked) run(t *testing.T, target *bridge.Target) *bridge.Check {
	t.Helper()
	check, err := c.Run(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return check
}

// problems says shortly what a check found.
func problems(c *bridge.Check) []string {
	list := []string{}
	for _, p := range c.Problems {
		if p.Remedy == "" {
			list = append(list, "no remedy")
		}
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s%q %s", p.Outcome, p.Unit, p.FDs, p.Message)))
	}
	return list
}

const (
	runningBanner = "Linux version 7.2.13 (build@host) #1 SMP"
	cannotBeTold  = "carried [] which kernel is loaded, with which command line, and whether by kexec_file_load, without which nothing is carried, cannot be told"
)

func TestCheckJudgesEachEntryOfEachOptedInUnit(t *testing.T) {
	c := newChecked(t)
	for name, preserve := range map[string]string{
		"a.service": "yes", "excluded.service": "restart", "plain.service": "restart", "required.service": "on-success",
	} {
		c.add(name, preserve)
		c.put(name, "data", "12345")
	}
	c.putPipe("a.service", "p")
	c.putPipe("a.service", "q")
	c.putHole("required.service", "hole", 5<<20)
	got := c.run(t, nil)
	const noPipe = "the kernel cannot carry this kind of file"
	scratch := int64(0x4000000)
	want := &bridge.Check{
		Outcome: bridge.Lossy,
		Units: []bridge.CheckedUnit{
			{Unit: "a.service", Entries: []bridge.CheckedEntry{
				{Name: "q", Type: "pipe", Reason: noPipe}, {Name: "p", Type: "pipe", Reason: noPipe},
				{Name: "data", Type: "memfd", Carried: true, Size: 5},
			}},
			{Unit: "required.service", Required: true, Entries: []bridge.CheckedEntry{
				{Name: "hole", Type: "memfd", Carried: true, Size: 5 << 20},
				{Name: "data", Type: "memfd", Carried: true, Size: 5},
			}},
		},
		Kernel: bridge.CheckedKernel{Loaded: true},
		Memory: bridge.CheckedMemory{Carried: 5<<20 + 10, Needed: 5 << 20, Available: 1 << 20, Scratch: &scratch},
	}
	ignore := []cmp.Option{cmpopts.IgnoreFields(bridge.Check{}, "Problems"), cmpopts.IgnoreUnexported(bridge.CheckedEntry{})}
	if diff := cmp.Diff(want, got, ignore...); diff != "" {
		t.Errorf("check (-want +got):\n%s", diff)
	}
	wantProblems := []string{
		`lossy a.service["q" "p"] ` + noPipe,
		`lossy [] what would be carried has holes that take 5 MiB of memory when they are filled, and 1 MiB are available`,
		cannotBeTold,
		`carried plain.service["data"] its store ends with it: FileDescriptorStorePreserve=restart`,
	}
	if diff := cmp.Diff(wantProblems, problems(got)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if carried, lost := got.Count(); carried != 3 || lost != 2 {
		t.Errorf("%d carried and %d lost, want 3 and 2", carried, lost)
	}
}

// putHole stores a memfd without memory.
func (m *manager) putHole(name, entry string, size int64) {
	m.t.Helper()
	raw, err := unix.MemfdCreate("hole", unix.MFD_CLOEXEC)
	if err != nil {
		m.t.Fatal(err)
	}
	f := fd.New(raw)
	defer f.Close()
	if err := errors.Join(unix.Ftruncate(raw, size), keeper{m: m, unit: name}.Store(entry, f)); err != nil {
		m.t.Fatal(err)
	}
}

func TestAnInodeInTwoStoresTakesItsMemoryOnce(t *testing.T) {
	c := newChecked(t)
	c.add("a.service", "yes")
	c.add("b.service", "yes")
	c.put("a.service", "data", "12345")
	shared := c.passed("a.service")[0]
	defer shared.FD.Close()
	if err := (keeper{m: c.manager, unit: "b.service"}).Store("same", shared.FD); err != nil {
		t.Fatal(err)
	}
	check := c.run(t, nil)
	if carried, _ := check.Count(); carried != 2 || check.Memory.Carried != 5 {
		t.Errorf("%d fds of %d bytes are carried, want 2 of 5", carried, check.Memory.Carried)
	}
}

func TestCheckSaysThatALossOfARequiredUnitCallsTheUpdateOff(t *testing.T) {
	c := newChecked(t)
	for _, unit := range []string{"a.service", "required.service"} {
		if check := c.run(t, nil); check.CalledOff {
			t.Errorf("it is called off without a loss of required.service")
		}
		c.add(unit, "yes")
		c.putPipe(unit, "p")
	}
	if check := c.run(t, nil); !check.CalledOff {
		t.Error("it is not called off")
	}
}

func TestCheckFindsWhatIsWrongWithTheMachine(t *testing.T) {
	tests := map[string]struct {
		change  func(c *checked)
		outcome bridge.Outcome
		want    []string
	}{
		"nothing": {func(*checked) {}, bridge.Carried, []string{cannotBeTold}},
		"nothing is loaded": {func(c *checked) { c.root["sys/kernel/kexec_loaded"].Data = []byte("0\n") },
			bridge.Impossible, []string{`impossible [] no kernel is loaded for kexec`}},
		"no kexec": {func(c *checked) { delete(c.root, "sys/kernel/kexec_loaded") },
			bridge.Impossible, []string{`impossible [] this kernel has no kexec`}},
		"booted without switches": {func(c *checked) {
			delete(c.root, "dev/liveupdate")
			c.root["proc/cmdline"].Data = []byte("quiet kho=on kho=off\n")
		}, bridge.Impossible, []string{
			`impossible [] this kernel offers no live update: there is no /dev/liveupdate, and no kho=on and no liveupdate=on on its command line`,
			cannotBeTold,
		}},
		"no live update": {func(c *checked) { delete(c.root, "dev/liveupdate") }, bridge.Impossible, []string{
			`impossible [] liveupdate=on is on the kernel command line, but there is no /dev/liveupdate: kexec handover is off, or the kernel was built without CONFIG_LIVEUPDATE`,
			cannotBeTold,
		}},
		"fdbridged is dead": {func(c *checked) { c.states[bridge.OwnUnit] = units.State{Load: "loaded", Active: "failed"} },
			bridge.Lossy, []string{
				`lossy [] fdbridged.service is failed, so that stores of stopped units may be forgotten`, cannotBeTold,
			}},
		"services are not there": {func(c *checked) {
			c.states[bridge.OwnUnit] = units.State{Load: "not-found"}
			c.states[bridge.PreserveUnit] = units.State{Load: "masked"}
		}, bridge.Impossible, []string{
			`impossible [] fdbridged.service is not loaded (not-found)`,
			`impossible [] fdbridge-preserve.service is masked`, cannotBeTold,
		}},
		"preserving is not required": {func(c *checked) { c.states["systemd-kexec.service"] = units.State{Load: "loaded"} },
			bridge.Impossible, []string{
				`impossible [] systemd-kexec.service does not require fdbridge-preserve.service`, cannotBeTold,
			}},
		"PID 1 keeps its fds": {func(c *checked) {
			c.Duplicator = func() (bridge.Duplicator, error) { return nil, unix.EPERM }
		}, bridge.Impossible, []string{
			`impossible [] the fds in the stores cannot be had from PID 1: operation not permitted`, cannotBeTold,
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := newChecked(t)
			test.change(c)
			check := c.run(t, nil)
			if diff := cmp.Diff(test.want, problems(check)); diff != "" || check.Outcome != test.outcome {
				t.Errorf("%s, want %s; problems (-want +got):\n%s", check.Outcome, test.outcome, diff)
			}
		})
	}
}

// kernel is a small file that looks like one of Linux 7.2.
func kernel(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("../kho/image/testdata/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCheckLooksAtTheKernelThatIsNamed(t *testing.T) {
	sample := kernel(t)
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
		outcome bridge.Outcome
		want    []string
	}{
		"the same":        {sample, on, read.Banner, bridge.Carried, nil},
		"no command line": {sample, nil, read.Banner, bridge.Carried, []string{"with which command line k is booted cannot be told"}},
		"an empty one":    {sample, cmdline(""), read.Banner, bridge.Impossible, []string{"the next kernel's command line has no kho=on and no liveupdate=on"}},
		"one switch":      {sample, cmdline("kho=on liveupdate=0"), read.Banner, bridge.Impossible, []string{"no liveupdate=on"}},
		"another format":  {older, on, read.Banner, bridge.Impossible, []string{"hands over luo-v5, and kernel 7.2.12-sample reads only luo-v4"}},
		"not known":       {sample, on, runningBanner, bridge.Lossy, []string{"kho format", "luo format", "memfd format"}},
		"no kernel":       {[]byte(strings.Repeat("text", 1000)), on, read.Banner, bridge.Impossible, []string{"not a Linux kernel"}},
		"too large":       {append(bytes.Clone(sample), make([]byte, 65<<20)...), on, read.Banner, bridge.Carried, []string{"has 65 MiB, and no area that kexec loads into has more than 64 MiB"}},
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
			check := c.run(t, &bridge.Target{Name: "k", Image: bytes.NewReader(test.image), Size: int64(len(test.image)), Cmdline: test.cmdline})
			got := problems(check)
			for i := range min(len(got), len(test.want)) {
				if !strings.Contains(got[i], test.want[i]) {
					t.Errorf("got %q, want %q", got[i], test.want[i])
				}
			}
			if len(got) != len(test.want) || check.Outcome != test.outcome {
				t.Errorf("%s %q, want %s with %d problems", check.Outcome, got, test.outcome, len(test.want))
			}
		})
	}
}

func TestACheckThatCanSayNothingIsAnError(t *testing.T) {
	for name, change := range map[string]func(c *checked){
		"PID 1": func(c *checked) { c.err = units.ErrManager },
		"states": func(c *checked) {
			c.State = func(context.Context, string) (units.State, error) { return units.State{}, units.ErrManager }
		},
		"no proc": func(c *checked) {
			maps.DeleteFunc(c.root, func(name string, _ *fstest.MapFile) bool { return name == "proc/meminfo" })
		},
	} {
		c := newChecked(t)
		change(c)
		if check, err := c.Run(t.Context(), nil); err == nil || check != nil {
			t.Errorf("%s: %v, %v, want an error", name, check, err)
		}
	}
}

func TestACheckEndsWithItsContext(t *testing.T) {
	c, sample := newChecked(t), kernel(t)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	_, err := c.Run(ctx, &bridge.Target{Name: "k", Image: bytes.NewReader(sample), Size: int64(len(sample))})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}
