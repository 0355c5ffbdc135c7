// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
)

const heldDropIn = "[Service]\nExecStartPre=-+/bin/true\n"

func heldDropIns(names ...string) map[string][]byte {
	dropIns := map[string][]byte{}
	for _, name := range names {
		dropIns[name] = []byte(heldDropIn)
	}
	return dropIns
}

// dropIns returns what the drop-ins of units in dir contain.
func dropIns(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	paths, err := filepath.Glob(filepath.Join(dir, "*.d", "zz-fdbridge-held.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(filepath.Base(filepath.Dir(path)), ".d")] = string(data)
	}
	return found
}

func TestEachHeldUnitWithoutAFileGetsItsDropIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	names := []string{"run-u1.service", `odd\x2dname:1@a\x20b.service`}
	for range 2 { // fdbridged may be started again in the same boot
		if added, err := bridge.AddDropIns(dir, heldDropIns(names...)); added != 2 || err != nil {
			t.Fatalf("AddDropIns: %d, %v", added, err)
		}
	}
	if diff := cmp.Diff(map[string]string{names[0]: heldDropIn, names[1]: heldDropIn}, dropIns(t, dir)); diff != "" {
		t.Errorf("drop-ins (-want +got):\n%s", diff)
	}
}

func TestWithoutHeldUnitsNothingIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "system")
	if added, err := bridge.AddDropIns(dir, nil); added != 0 || err != nil {
		t.Errorf("AddDropIns: %d, %v", added, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was made: %v", dir, err)
	}
}

func TestAUnitThatCannotHaveADropInIsNamedAndTheOthersGetTheirs(t *testing.T) {
	dir := t.TempDir()
	// A file where the directory should be, a directory where the file should
	// be, and a name with no room left for the directory's ".d".
	noDir, noFile, long := "nodir.service", "nofile.service", strings.Repeat("l", 246)+".service"
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, noDir+".d"), nil, 0o644),
		os.MkdirAll(filepath.Join(dir, noFile+".d", "zz-fdbridge-held.conf", "x"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	added, err := bridge.AddDropIns(dir, heldDropIns(noDir, "a.service", noFile, long, "b.service"))
	if added != 2 {
		t.Errorf("AddDropIns wrote %d, want 2", added)
	}
	for unit, want := range map[string]error{noDir: unix.ENOTDIR, noFile: unix.EISDIR, long: unix.ENAMETOOLONG} {
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "give "+unit+" the drop-in") {
			t.Errorf("AddDropIns: %v, want %v for %s", err, want, unit)
		}
	}
	if err != nil && (strings.Contains(err.Error(), "a.service") || strings.Contains(err.Error(), "b.service")) {
		t.Errorf("AddDropIns blames the others: %v", err)
	}
	_ = os.RemoveAll(filepath.Join(dir, noFile+".d")) // which is no file to read
	if diff := cmp.Diff(map[string]string{"a.service": heldDropIn, "b.service": heldDropIn}, dropIns(t, dir)); diff != "" {
		t.Errorf("drop-ins (-want +got):\n%s", diff)
	}
}
