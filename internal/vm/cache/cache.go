// SPDX-License-Identifier: Apache-2.0

// Package cache keeps what is slow to make: one directory per artefact, named
// by a hash of everything it was made from. It knows nothing of what is in
// them.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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

// Lookup returns the directory of an artefact and whether it is there.
func (c Cache) Lookup(kind, key string) (string, bool) {
	dir := filepath.Join(c.Dir, kind, key)
	_, err := os.Stat(dir)
	return dir, err == nil
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
// under its name only when build succeeded. It may leave in work, which all
// artefacts of a kind share, what helps the next attempt; work is removed when
// build succeeded.
// One builder of a kind is at work at a time; the others wait until ctx ends.
func (c Cache) Ensure(ctx context.Context, kind, key string, build func(out, work string) error) (string, error) {
	dir, ok := c.Lookup(kind, key)
	if ok {
		return dir, touch(dir)
	}
	unlock, err := c.Lock(ctx, kind)
	if err != nil {
		return "", err
	}
	defer unlock()
	if dir, ok := c.Lookup(kind, key); ok {
		return dir, touch(dir)
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
	return dir, os.RemoveAll(work)
}

// Prune removes all but the keep artefacts of a kind that were used last.
func (c Cache) Prune(kind string, keep int) error {
	dirs := c.byUse(kind, "*")
	for _, d := range dirs[min(keep, len(dirs)):] {
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("prune the cache: %w", err)
		}
	}
	return nil
}

// byUse lists artefacts, last used first.
func (c Cache) byUse(kind, pattern string) []string {
	dirs, _ := filepath.Glob(filepath.Join(c.Dir, kind, pattern)) // fails only for a bad pattern
	used := map[string]time.Time{}
	for _, d := range dirs {
		if st, err := os.Stat(d); err == nil {
			used[d] = st.ModTime()
		}
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return used[b].Compare(used[a]) })
	return dirs
}

func touch(dir string) error {
	now := time.Now()
	return os.Chtimes(dir, now, now)
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
