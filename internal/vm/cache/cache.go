// SPDX-License-Identifier: Apache-2.0

// Package cache keeps what is slow to make: one directory per artefact, named
// by a hash of everything it was made from. It knows nothing of what is in
// them.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a builder looks whether another one has finished.
const lockPoll = 250 * time.Millisecond

// Cache is a directory of artefacts. Its methods may be called by several
// processes at once.
type Cache struct{ Dir string }

// Default returns the cache of this user: ${XDG_CACHE_HOME:-$HOME/.cache}/fdbridge.
func Default() (Cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return Cache{}, fmt.Errorf("find the cache directory: %w", err)
	}
	return Cache{Dir: filepath.Join(dir, "fdbridge")}, nil
}

// Key hashes the parts of a recipe, in order. Two recipes with the same parts
// have the same key, and moving a byte from one part to the next changes it.
func Key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// FileKey hashes the contents of a file.
func FileKey(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash a build input: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash build input %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Newest returns the artefact of a kind, among those whose key matches the
// pattern of filepath.Match, that was used last.
func (c Cache) Newest(kind, pattern string) (string, bool) {
	dirs := c.byUse(kind, pattern)
	if len(dirs) == 0 {
		return "", false
	}
	return dirs[0], true
}

// Ensure returns the directory of the artefact, and calls build to make it
// when it is not there. build fills the empty directory out, which appears
// under its name only when build succeeded, and stays until this process ends. It may leave in work, which all
// artefacts of a kind share, what helps the next attempt; work is removed when
// build succeeded.
// One builder of a kind is at work at a time; the others wait until ctx ends.
func (c Cache) Ensure(ctx context.Context, kind, key string, build func(out, work string) error) (string, error) {
	dir := filepath.Join(c.Dir, kind, key)
	if err := Use(dir); !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	unlock, err := c.Lock(ctx, kind)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := Use(dir); !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	work := filepath.Join(c.Dir, "work", kind)
	out := work + ".out"
	if err := os.RemoveAll(out); err != nil {
		return "", err
	}
	for _, d := range []string{out, work, filepath.Dir(dir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	if err := build(out, work); err != nil {
		return "", err
	}
	if err := os.Rename(out, dir); err != nil {
		return "", fmt.Errorf("put a built artefact in its place: %w", err)
	}
	return dir, errors.Join(Use(dir), os.RemoveAll(work))
}

// Prune removes all but the keep artefacts of a kind that were used last, and
// but those that a process is using.
func (c Cache) Prune(kind string, keep int) error {
	dirs := c.byUse(kind, "*")
	for _, d := range dirs[min(keep, len(dirs)):] {
		if err := removeUnused(d); err != nil {
			return fmt.Errorf("prune the cache: %w", err)
		}
	}
	return nil
}

func removeUnused(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// used holds the directories that this process uses, each open with a shared
// lock: the kernel drops it when the process ends, however it ends.
var used struct {
	sync.Mutex
	dirs map[string]*os.File
}

// Use keeps a directory from Prune until this process ends, and counts as its
// last use. It returns os.ErrNotExist when the directory is not there.
func Use(dir string) error {
	used.Lock()
	defer used.Unlock()
	if used.dirs[dir] == nil {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		// Prune holds its lock only while it removes.
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			f.Close()
			return fmt.Errorf("lock %s: %w", dir, err)
		}
		if used.dirs == nil {
			used.dirs = map[string]*os.File{}
		}
		used.dirs[dir] = f
	}
	// This is what fails if it was removed between the opening and the lock.
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		used.dirs[dir].Close()
		delete(used.dirs, dir)
		return err
	}
	return nil
}

// byUse lists artefacts, last used first.
func (c Cache) byUse(kind, pattern string) []string {
	dirs, _ := filepath.Glob(filepath.Join(c.Dir, kind, pattern)) // fails only for a bad pattern
	last := map[string]time.Time{}
	for _, d := range dirs {
		if st, err := os.Stat(d); err == nil {
			last[d] = st.ModTime()
		}
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return last[b].Compare(last[a]) })
	return dirs
}

// Lock takes the lock of a kind and returns what drops it; the kernel does so when
// the holder dies. It waits until ctx ends.
func (c Cache) Lock(ctx context.Context, kind string) (unlock func(), err error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.Dir, kind+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock the %s cache: %w", kind, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build of a %s: %w", kind, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
