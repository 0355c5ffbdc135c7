// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// stores stands in for PID 1. What is stored is held by this process, so that a
// real Duplicator finds it.
type stores struct {
	t       *testing.T
	entries map[string][]units.Entry // by unit
	carries bool                     // PID 1 carries stores itself
	err     error                    // of all questions
}

// put stores a duplicate of f.
func (s *stores) put(unit, name string, f *fd.FD) {
	s.t.Helper()
	f, err := f.Dup()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		s.t.Fatal(err)
	}
	path, err := f.Link()
	if err != nil {
		s.t.Fatal(err)
	}
	flags, err := units.OpenFlags(f)
	if err != nil {
		s.t.Fatal(err)
	}
	s.entries[unit] = slices.Insert(s.entries[unit], 0, units.Entry{
		Name: name, Mode: st.Mode, Dev: st.Dev, Ino: st.Ino, Rdev: st.Rdev, Path: path, Flags: flags,
	})
}

func (s *stores) EachStore(_ context.Context, each func(s *units.Store)) error {
	preserve := map[string]string{"excluded.service": "restart", "plain.service": "restart", "required.service": "on-success"}
	for _, unit := range slices.Sorted(maps.Keys(s.entries)) {
		each(&units.Store{Unit: unit, Max: 10, Preserve: cmp.Or(preserve[unit], "yes"), Entries: s.entries[unit]})
	}
	return s.err
}

func (s *stores) Carries(context.Context) (bool, error) { return s.carries, s.err }

func (s *stores) Version(context.Context) (string, error) {
	if s.err != nil {
		return "", s.err
	}
	return "257.13-1", nil
}

// checked is a machine where a live update works.
type checked struct {
	*stores
	*check.Checker
	root   fstest.MapFS
	states map[string]units.State
}

func newChecked(t *testing.T) *checked {
	c := &checked{stores: &stores{t: t, entries: map[string][]units.Entry{}}, root: fstest.MapFS{}}
	for name, data := range map[string]string{
		"dev/liveupdate":                       "",
		"proc/cmdline":                         "kho=on liveupdate=on\n",
		"proc/meminfo":                         "MemTotal:  2000000 kB\nMemAvailable:    1024 kB\n",
		"proc/sys/kernel/osrelease":            "7.2.13\n",
		"proc/sys/kernel/random/boot_id":       "1b4e28ba-2fa1-41d2-883f-0016d3cca427\n",
		"proc/version":                         runningBanner + "\n",
		"sys/kernel/debug/kho/out/scratch_len": "0x100000\n0x4000000\n0x200000\n",
		"sys/kernel/kexec_loaded":              "1\n",
	} {
		c.root[name] = &fstest.MapFile{Data: []byte(data)}
	}
	c.states = map[string]units.State{
		bridge.OwnUnit:          {Load: "loaded", Active: "active"},
		bridge.PreserveUnit:     {Load: "loaded", Active: "inactive"},
		"systemd-kexec.service": {Load: "loaded", Requires: []string{"shutdown.target", bridge.PreserveUnit}},
	}
	c.Checker = &check.Checker{
		Stores:     c.stores,
		Duplicator: func() (bridge.Duplicator, error) { return units.OpenDuplicator(os.Getpid()) },
		State:      func(_ context.Context, unit string) (units.State, error) { return c.states[unit], nil },
		Excluded:   func(unit string) bool { return unit == "excluded.service" },
		Required:   func(unit string) bool { return unit == "required.service" },
		Root:       c.root,
		KernelLog:  func() ([]byte, error) { return []byte("<5>[    0.000000] " + runningBanner + "\n"), nil },
	}
	return c
}

func (c *checked) run(t *testing.T, target *check.Target) *check.Result {
	t.Helper()
	found, err := c.Run(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// problems says shortly what a check found.
func problems(c *check.Result) []string {
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
	noDevice      = "impossible [] liveupdate=on is on the kernel command line, but there is no /dev/liveupdate: kexec handover is off, or the kernel was built without CONFIG_LIVEUPDATE"
	cannotBeTold  = "carried [] which kernel is loaded, with which command line, and whether by kexec_file_load, without which nothing is carried, cannot be told"
)

func TestCheckJudgesEachEntryOfEachOptedInUnit(t *testing.T) {
	c := newChecked(t)
	for _, name := range []string{"a.service", "excluded.service", "plain.service", "required.service"} {
		c.put(name, "data", memfd(t, 5, true))
	}
	c.put("a.service", "p", pipe(t))
	c.put("a.service", "q", pipe(t))
	c.put("required.service", "hole", memfd(t, 5<<20, false))
	got := c.run(t, nil)
	const noPipe = "the kernel cannot carry this kind of file"
	scratch := int64(0x4000000)
	want := &check.Result{
		Outcome: check.Lossy,
		Units: []check.Unit{
			{Unit: "a.service", Entries: []check.Entry{
				{Name: "q", Type: "pipe", Reason: noPipe}, {Name: "p", Type: "pipe", Reason: noPipe},
				{Name: "data", Type: "memfd", Carried: true, Size: 5},
			}},
			{Unit: "required.service", Required: true, Entries: []check.Entry{
				{Name: "hole", Type: "memfd", Carried: true, Size: 5 << 20},
				{Name: "data", Type: "memfd", Carried: true, Size: 5},
			}},
		},
		Kernel: check.Kernel{Loaded: true},
		Memory: check.Memory{Carried: 5<<20 + 10, Needed: 5 << 20, Available: 1 << 20, Scratch: &scratch},
	}
	ignore := []gocmp.Option{cmpopts.IgnoreFields(check.Result{}, "Problems"), cmpopts.IgnoreUnexported(check.Entry{})}
	if diff := gocmp.Diff(want, got, ignore...); diff != "" {
		t.Errorf("check (-want +got):\n%s", diff)
	}
	wantProblems := []string{
		`lossy a.service["q" "p"] ` + noPipe,
		`lossy [] what would be carried has holes that take 5 MiB of memory when they are filled, and 1 MiB are available`,
		cannotBeTold,
		`carried plain.service["data"] its store ends with it: FileDescriptorStorePreserve=restart`,
	}
	if diff := gocmp.Diff(wantProblems, problems(got)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if carried, lost := got.Count(); carried != 3 || lost != 2 {
		t.Errorf("%d carried and %d lost, want 3 and 2", carried, lost)
	}
}

// memfd returns a memfd of that many bytes, with memory or without.
func memfd(t *testing.T, size int64, allocated bool) *fd.FD {
	t.Helper()
	f := fdtest.Memfd(t)
	if err := f.Do(func(raw int) error {
		if allocated {
			return unix.Fallocate(raw, 0, 0, size)
		}
		return unix.Ftruncate(raw, size)
	}); err != nil {
		t.Fatal(err)
	}
	return f
}

// pipe returns the reading end of a pipe, which no kernel carries.
func pipe(t *testing.T) *fd.FD {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f := fd.New(p[0])
	t.Cleanup(func() { _ = f.Close() })
	if err := unix.Close(p[1]); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAnInodeInTwoStoresTakesItsMemoryOnce(t *testing.T) {
	c := newChecked(t)
	shared := memfd(t, 5, true)
	c.put("a.service", "data", shared)
	c.put("b.service", "same", shared)
	found := c.run(t, nil)
	if carried, _ := found.Count(); carried != 2 || found.Memory.Carried != 5 {
		t.Errorf("%d fds of %d bytes are carried, want 2 of 5", carried, found.Memory.Carried)
	}
}

func TestASessionIsCarriedByAPID1ThatCarriesStores(t *testing.T) {
	for carries, want := range map[bool]check.Outcome{true: check.Carried, false: check.Lossy} {
		c := newChecked(t)
		c.carries = carries
		c.entries["a.service"] = []units.Entry{{Name: "session", Path: "anon_inode:[luo_session] it"}}
		found := c.run(t, nil)
		if e := found.Units[0].Entries; found.Outcome != want || e[0].Carried != carries || e[0].Type != "luo_session" {
			t.Errorf("carries %v: %s, %+v", carries, found.Outcome, e)
		}
	}
}

func TestCheckSaysThatALossOfARequiredUnitCallsTheUpdateOff(t *testing.T) {
	c := newChecked(t)
	for _, unit := range []string{"a.service", "required.service"} {
		if found := c.run(t, nil); found.CalledOff {
			t.Errorf("it is called off without a loss of required.service")
		}
		c.put(unit, "p", pipe(t))
	}
	if found := c.run(t, nil); !found.CalledOff {
		t.Error("it is not called off")
	}
}

func TestCheckFindsWhatIsWrongWithTheMachine(t *testing.T) {
	tests := map[string]struct {
		change  func(c *checked)
		outcome check.Outcome
		want    []string
	}{
		"nothing": {func(*checked) {}, check.Carried, []string{cannotBeTold}},
		"a wrong setting": {func(c *checked) { c.Settings = []error{errors.New("OnLoss=perhaps is ignored")} },
			check.Carried, []string{`carried [] OnLoss=perhaps is ignored`, cannotBeTold}},
		"nothing is loaded": {func(c *checked) { c.root["sys/kernel/kexec_loaded"].Data = []byte("0\n") },
			check.Impossible, []string{`impossible [] no kernel is loaded for kexec`}},
		"no kexec": {func(c *checked) { delete(c.root, "sys/kernel/kexec_loaded") },
			check.Impossible, []string{`impossible [] this kernel has no kexec`}},
		"booted without switches": {func(c *checked) {
			delete(c.root, "dev/liveupdate")
			c.root["proc/cmdline"].Data = []byte("quiet kho=on kho=off\n")
		}, check.Impossible, []string{
			`impossible [] this kernel offers no live update: there is no /dev/liveupdate, and no kho=on and no liveupdate=on on its command line`,
			cannotBeTold,
		}},
		"kho=on without a word": {func(c *checked) {
			delete(c.root, "dev/liveupdate")
			c.root["proc/cmdline"].Data = []byte("quiet\n")
			c.root["proc/config.gz"] = &fstest.MapFile{Data: gzipped(t, "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\n")}
		}, check.Impossible, []string{
			`impossible [] this kernel offers no live update: there is no /dev/liveupdate, and no liveupdate=on on its command line`,
			cannotBeTold,
		}},
		"kho=on without a word, but no live update": {func(c *checked) {
			delete(c.root, "dev/liveupdate")
			c.root["proc/cmdline"].Data = []byte("liveupdate=on\n")
			c.root["proc/config.gz"] = &fstest.MapFile{Data: gzipped(t, "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\n")}
		}, check.Impossible, []string{noDevice, cannotBeTold}},
		"a command line that is built in": {func(c *checked) {
			delete(c.root, "dev/liveupdate")
			c.root["proc/cmdline"].Data = []byte("kho=on\n")
			c.root["proc/config.gz"] = &fstest.MapFile{Data: gzipped(t, override+`"kho=on"`+"\n")}
		}, check.Impossible, []string{
			`impossible [] this kernel offers no live update: there is no /dev/liveupdate, and no liveupdate=on on its command line, which is built in (CONFIG_CMDLINE_OVERRIDE=y)`,
			cannotBeTold,
		}},
		"no live update": {func(c *checked) { delete(c.root, "dev/liveupdate") }, check.Impossible, []string{noDevice, cannotBeTold}},
		"fdbridged is dead": {func(c *checked) { c.states[bridge.OwnUnit] = units.State{Load: "loaded", Active: "failed"} },
			check.Lossy, []string{
				`lossy [] fdbridged.service is failed, so that stores of stopped units may be forgotten`, cannotBeTold,
			}},
		"services are not there": {func(c *checked) {
			c.states[bridge.OwnUnit] = units.State{Load: "not-found"}
			c.states[bridge.PreserveUnit] = units.State{Load: "masked"}
		}, check.Impossible, []string{
			`impossible [] fdbridged.service is not loaded (not-found)`,
			`impossible [] fdbridge-preserve.service is masked`, cannotBeTold,
		}},
		"preserving is not required": {func(c *checked) { c.states["systemd-kexec.service"] = units.State{Load: "loaded"} },
			check.Impossible, []string{
				`impossible [] systemd-kexec.service does not require fdbridge-preserve.service`, cannotBeTold,
			}},
		"PID 1 keeps its fds": {func(c *checked) {
			c.Duplicator = func() (bridge.Duplicator, error) { return nil, unix.EPERM }
		}, check.Impossible, []string{
			`impossible [] the fds in the stores cannot be had from PID 1: operation not permitted`, cannotBeTold,
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := newChecked(t)
			test.change(c)
			found := c.run(t, nil)
			if diff := gocmp.Diff(test.want, problems(found)); diff != "" || found.Outcome != test.outcome {
				t.Errorf("%s, want %s; problems (-want +got):\n%s", found.Outcome, test.outcome, diff)
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
		if found, err := c.Run(t.Context(), nil); err == nil || found != nil {
			t.Errorf("%s: %v, %v, want an error", name, found, err)
		}
	}
}

func TestACheckEndsWithItsContext(t *testing.T) {
	c, sample := newChecked(t), sampleFile(t, "vmlinux")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	_, err := c.Run(ctx, &check.Target{Name: "k", Image: bytes.NewReader(sample), Size: int64(len(sample))})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}
