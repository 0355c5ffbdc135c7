// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWatcherTellsOfTransientUnitsAndReloads(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, stateDir)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.MkdirAll(dir, 0o755))
	w, err := NewWatcher(root)
	do(err)
	next := func(wantServices []string, wantAll bool) {
		t.Helper()
		services, all, err := w.Next()
		if diff := cmp.Diff(wantServices, services); diff != "" || all != wantAll || err != nil {
			t.Errorf("all %v, want %v; %v (-want +got):\n%s", all, wantAll, err, diff)
		}
	}
	do(os.Mkdir(filepath.Join(dir, "generator.late"), 0o755))
	do(os.Mkdir(filepath.Join(dir, "transient"), 0o755)) // it is made when it is needed first
	next(nil, true)
	do(os.WriteFile(filepath.Join(dir, "transient", "a.scope"), nil, 0o644))
	do(os.WriteFile(filepath.Join(dir, "transient", "b.service"), nil, 0o644))
	next([]string{"b.service"}, false)
	do(os.Mkdir(filepath.Join(dir, "generator"), 0o755))
	next(nil, true)
	do(w.Close())
	if _, _, err := w.Next(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next after Close: %v, want ErrClosed", err)
	}
}

func TestWatcherOfWhatIsNotThereIsAnError(t *testing.T) {
	if _, err := NewWatcher(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("NewWatcher: %v, want ErrNotExist", err)
	}
}
