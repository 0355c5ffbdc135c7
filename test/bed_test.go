// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/test/machine"
)

// bed is a machine under test.
type bed struct {
	*testing.T
	m       *vm.Machine
	ctx     context.Context
	explain func() // what has failed, once
}

// boot starts a machine from an image, when it is the scenario's turn, and waits until
// it is up. A scenario as a whole may take scenarioBound.
func boot(t *testing.T, image image, args ...string) *bed {
	t.Helper()
	return bootConfig(t, image, vm.Config{KernelArgs: args})
}

func bootConfig(t *testing.T, image image, config vm.Config) *bed {
	t.Helper()
	place := machines.line(t.Name())
	t.Parallel()
	place.wait()
	t.Cleanup(place.leave)
	return bootFor(t, scenarioBound, image, config)
}

// bootFor is boot for a scenario that may take that long as a whole, and waits for no
// other one.
func bootFor(t *testing.T, bound time.Duration, image image, config vm.Config) *bed {
	t.Helper()
	path, err := image()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), bound)
	t.Cleanup(stop)
	config.Kernel, config.Image = images.kernel, path
	b := &bed{T: t, m: vm.Test(t, config), ctx: ctx}
	b.explain = sync.OnceFunc(b.lastWords)
	t.Cleanup(b.explain) // before the machine is ended
	b.settled()
	return b
}

// in returns the same bed for a subtest.
func (b *bed) in(t *testing.T) *bed {
	sub := *b
	sub.T = t
	return &sub
}

// lastWords adds to the log of a failed test what fdbridge has said in the guest,
// if that still answers.
func (b *bed) lastWords() {
	if !b.Failed() {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	r, err := b.m.Shell(ctx, "journalctl --no-pager -q -o short-monotonic -n 150 -t fdbridged -t fdbridge-inject; fdbridgectl status")
	b.Logf("the journal of the guest says (%v):\n%s", err, r.Stdout)
}

// settled waits until the guest has started all that it starts.
func (b *bed) settled() {
	b.Helper()
	r, err := b.do("systemctl", "is-system-running", "--wait")
	if state := strings.TrimSpace(r.Stdout); err != nil || state != "running" && state != "degraded" {
		b.Fatalf("the machine is %q: %v", state, err)
	}
}

// do runs a command in the guest, which may hang there, but not for long.
func (b *bed) do(argv ...string) (vm.Result, error) {
	ctx, stop := context.WithTimeout(b.ctx, commandBound)
	defer stop()
	return b.m.Do(ctx, vm.Command{Argv: argv})
}

// sh runs a script in the guest and returns what it prints.
func (b *bed) sh(format string, args ...any) string {
	b.Helper()
	script := fmt.Sprintf(format, args...)
	r, err := b.do("sh", "-eu", "-c", script)
	if err != nil || r.Status != 0 {
		b.Fatalf("in the guest: %s: status %d, %v\n%s%s", script, r.Status, err, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// polling is a script that waits until a shell's condition is true, for two minutes at
// most: the machine that the guest runs on may have much to do.
func polling(condition string) string {
	return fmt.Sprintf("timeout 120 sh -c 'until %s; do sleep 0.1; done'", condition)
}

// until waits until a shell's condition is true in the guest.
func (b *bed) until(condition string, args ...any) {
	b.Helper()
	b.sh("%s", polling(fmt.Sprintf(condition, args...)))
}

// journal returns the messages of this boot that are in the journal and match, in whole:
// journald may be behind.
func (b *bed) journal(match string, args ...any) string {
	b.Helper()
	return b.sh("journalctl --sync; journalctl --no-pager -q -b -o cat "+match, args...)
}

// active checks that each of units is active.
func (b *bed) active(units ...string) {
	b.Helper()
	states := strings.Fields(b.sh("systemctl is-active '%s' || true", strings.Join(units, "' '")))
	for i, unit := range units {
		if i >= len(states) || states[i] != "active" {
			b.Errorf("%q are %q: %s is to be active", units, states, unit)
		}
	}
}

// killServe kills fdbridged, and waits until the next one answers.
func (b *bed) killServe() {
	b.Helper()
	const unit = "fdbridged.service"
	killed := b.sh("systemctl show -P MainPID %s; systemctl kill --signal=KILL --kill-whom=main %[1]s", unit)
	b.until(`test "$(systemctl show -P MainPID %s)" != %s && fdbridgectl list > /dev/null`, unit, killed)
}

// kexec replaces the kernel and waits until the new one is up.
func (b *bed) kexec() {
	b.Helper()
	if err := b.m.Kexec(b.ctx); err != nil {
		b.Fatal(err)
	}
	b.settled()
}

// load loads a kernel for what comes without bed.kexec.
func (b *bed) load(kernel string) {
	b.Helper()
	b.sh("kexec -s -l %s --reuse-cmdline", kernel)
}

// off switches the machine off, which must work whatever the scenario did, and as if
// there was no fdbridge.
func (b *bed) off() {
	b.Helper()
	b.explain()
	said := len(b.m.Console())
	if err := b.m.Shutdown(b.ctx); err != nil {
		b.Error(err)
	}
	leftAlone(b, said)
}

// file writes a file in the guest.
func (b *bed) file(path, text string) {
	b.Helper()
	if err := b.m.WriteFile(b.ctx, path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// configured makes this all that is configured; nothing is when it is empty.
func (b *bed) configured(setting string) {
	b.Helper()
	const dir = "/etc/fdbridge/fdbridge.conf.d"
	if setting == "" {
		b.sh("rm -r %s", dir)
		return
	}
	b.file(dir+"/test.conf", "[Bridge]\n"+setting+"\n")
}

// optIn are systemd's two directives.
const optIn = "FileDescriptorStoreMax=1024\nFileDescriptorStorePreserve=yes\n"

// service is a unit file that runs storesvc with files. What it finds is in
// the report of its unit.
func service(directives string, args ...string) string {
	return byHand(directives, args...) + "[Install]\nWantedBy=multi-user.target\n"
}

// byHand is a service that the boot does not start.
func byHand(directives string, args ...string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = quote(arg)
	}
	return "[Service]\nType=notify\nEnvironment=UNIT=%n\nExecStart=" + machine.GuestPrograms + "storesvc " +
		strings.Join(quoted, " ") + "\n" + directives
}

// quote writes an argument for ExecStart=.
func quote(arg string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(arg) + `"`
}

// units writes unit files, named after the map's keys, enables them and starts
// those that are no templates, in the order of their names, each when the one before
// has started, and more besides. It comes before any truth is
// established: systemd 257 turns the order of every store round when it reloads
// (service_serialize and service_deserialize_item in src/core/service.c).
func (b *bed) units(files map[string]string, more ...string) {
	b.Helper()
	enable, start := slices.Clone(more), ""
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b.file("/etc/systemd/system/"+name, files[name])
		if strings.Contains(name, "@.") {
			continue
		}
		if strings.Contains(files[name], "[Install]") {
			enable = append(enable, name)
		}
		start += "systemctl start " + name + "\n"
	}
	script := "systemctl daemon-reload\n"
	if len(enable) > 0 { // it reloads, too
		script = "systemctl enable " + strings.Join(enable, " ") + "\n"
	}
	if len(more) > 0 {
		start += "systemctl start " + strings.Join(more, " ") + "\n"
	}
	b.sh("%s", script+start)
}

// found is one fd that a unit's main process was started with.
type found struct {
	Name, Type, Sum              string
	Size, Position, Seals, Flags int64
	Inode                        uint64 // another one in each boot
	Mode, UID, GID               uint32
}

// report returns what a unit's main process found when it was started last.
func (b *bed) report(unit string) []found {
	b.Helper()
	data, err := b.m.ReadFile(b.ctx, "/run/storesvc/"+unit)
	if err != nil {
		b.Fatal(err)
	}
	var list []found
	if err := json.Unmarshal(data, &list); err != nil {
		b.Fatalf("the report of %s: %v: %s", unit, err, data)
	}
	return list
}

// restarted restarts units and returns what each then finds: the truth that a
// kernel update is compared with.
func (b *bed) restarted(units ...string) map[string][]found {
	b.Helper()
	b.sh("systemctl restart '%s'", strings.Join(units, "' '"))
	truth := map[string][]found{}
	for _, unit := range units {
		if truth[unit] = b.report(unit); len(truth[unit]) == 0 {
			b.Fatalf("%s finds nothing after a plain restart", unit)
		}
	}
	return truth
}

// same checks that each unit has found what it found before.
func (b *bed) same(truth map[string][]found) {
	b.Helper()
	for unit, want := range truth {
		if diff := cmp.Diff(want, b.report(unit), cmpopts.IgnoreFields(found{}, "Inode")); diff != "" {
			b.Errorf("%s finds other fds than after a plain restart (-want +got):\n%s", unit, diff)
		}
	}
}

// list returns what fdbridgectl list says, by unit.
func (b *bed) list() map[string]wire.Unit {
	b.Helper()
	var list []wire.Unit
	if err := json.Unmarshal([]byte(b.sh("fdbridgectl list --json")), &list); err != nil {
		b.Fatal(err)
	}
	units := map[string]wire.Unit{}
	for _, u := range list {
		units[u.Unit] = u
	}
	return units
}

// status is what fdbridgectl status says.
type status struct {
	wire.Status
	Lost     []wire.Lost
	Problems []string
}

func (b *bed) status() status {
	b.Helper()
	var s status
	if err := json.Unmarshal([]byte(b.sh("fdbridgectl status --json")), &s); err != nil {
		b.Fatal(err)
	}
	return s
}

// noProblems checks that fdbridge has nothing to complain about.
func (b *bed) noProblems() {
	b.Helper()
	s := b.status()
	if len(s.Problems) > 0 || len(s.Lost) > 0 {
		b.Errorf("fdbridge reports problems %q and lost fds %+v", s.Problems, s.Lost)
	}
}
