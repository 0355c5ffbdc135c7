// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

var errStop = errors.New("interrupted")

func put(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}

func TestArtefactIsBuiltOnce(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	builds := 0
	var dirs []string
	for range 2 {
		dir, err := c.Ensure(t.Context(), "kind", "key", func(out, _ string) error {
			builds++
			return put(out, "file", "made")
		})
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	if builds != 1 || dirs[0] != dirs[1] {
		t.Errorf("built %d times, in %v", builds, dirs)
	}
	if got, err := os.ReadFile(filepath.Join(dirs[0], "file")); string(got) != "made" {
		t.Errorf("artefact holds %q, %v", got, err)
	}
}

func TestInterruptedBuildLeavesNoArtefactButItsWork(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	_, err := c.Ensure(t.Context(), "kind", "key", func(out, work string) error {
		return errors.Join(put(out, "half", ""), put(work, "tree", "so far"), errStop)
	})
	if !errors.Is(err, errStop) {
		t.Fatalf("error is %v", err)
	}
	if names := left(c); len(names) != 0 {
		t.Errorf("half an artefact is there: %v", names)
	}
	var kept string
	dir, err := c.Ensure(t.Context(), "kind", "key", func(_, work string) error {
		data, err := os.ReadFile(filepath.Join(work, "tree"))
		kept = string(data)
		return err
	})
	if err != nil || kept != "so far" {
		t.Errorf("second attempt found %q, %v", kept, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("artefact has leftovers of the first attempt: %v", left)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "work", "kind")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("work was kept after success: %v", err)
	}
}

func TestBuildersOfAKindDoNotOverlap(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	var busy sync.Mutex
	var all sync.WaitGroup
	for _, key := range []string{"a", "b", "a", "b"} {
		all.Go(func() {
			_, err := c.Ensure(t.Context(), "kind", key, func(_, _ string) error {
				if !busy.TryLock() {
					return errors.New("two builders at once")
				}
				defer busy.Unlock()
				time.Sleep(20 * time.Millisecond) // room for another one to come
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestWaitForAnotherBuilderEndsWithTheContext(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	unlock, err := c.Lock(t.Context(), "kind")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Ensure(ctx, "kind", "key", func(_, _ string) error { return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestPruneKeepsWhatWasUsedLast(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	for age, key := range []string{"x-new", "x-mid", "x-old", "y-old"} {
		dir, err := c.Ensure(t.Context(), "kind", key, func(_, _ string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-time.Duration(age+1) * time.Hour)
		if err := os.Chtimes(dir, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if dir, ok := c.Newest("kind", "x-*"); !ok || filepath.Base(dir) != "x-new" {
		t.Errorf("newest is %s", dir)
	}
	stopUsing()
	// Asking for it counts as use.
	if _, err := c.Ensure(t.Context(), "kind", "x-old", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Prune("kind", 2); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x-old", "x-new"}, left(c)); diff != "" {
		t.Errorf("left after prune (-want +got):\n%s", diff)
	}
}

func TestPruneKeepsWhatIsUsed(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	for _, key := range []string{"a", "b"} {
		if _, err := c.Ensure(t.Context(), "kind", key, func(_, _ string) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Prune("kind", 0); err != nil {
		t.Fatal(err)
	}
	if len(left(c)) != 2 {
		t.Errorf("only %v are left of a and b, which this process uses", left(c))
	}
	// What a process used can go when it has ended.
	stopUsing()
	if err := c.Prune("kind", 0); err != nil {
		t.Fatal(err)
	}
	if len(left(c)) != 0 {
		t.Errorf("%v are left, and nobody uses them", left(c))
	}
}

// stopUsing does what the end of this process would.
func stopUsing() {
	for _, f := range used.dirs {
		f.Close()
	}
	used.dirs = nil
}

func left(c Cache) []string {
	var names []string
	for _, d := range c.byUse("kind", "*") {
		names = append(names, filepath.Base(d))
	}
	return names
}

func TestKeyTellsRecipesApart(t *testing.T) {
	recipes := [][]string{nil, {""}, {"a"}, {"a", ""}, {"", "a"}, {"a", "b"}, {"ab"}, {"b", "a"}}
	seen := map[string][]string{}
	for _, r := range recipes {
		key := Key(r...)
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %q have the same key", r, other)
		}
		seen[key] = r
	}
}
