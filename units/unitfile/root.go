// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds what is read of one file. systemd has no such bound; it
	// keeps a link to something that is no configuration at all from filling
	// the memory of an early boot.
	maxFile = 16 << 20

	// maxLinks is how many symlinks one path may go through, as in the kernel.
	maxLinks = 40

	devNull = "/dev/null"
)

// rootDir is the directory below which all paths are taken.
type rootDir string

func (r rootDir) host(name string) string { return filepath.Join(string(r), name) }

// chase follows the symlinks in an absolute path, that of the last component
// only with last. What does not exist is kept as it is written.
func (r rootDir) chase(name string, last bool) (string, error) {
	done, todo := "/", strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		next := path.Join(done, part) // also takes care of "..", "." and ""
		if part == ".." || next == done || (len(todo) == 0 && !last) {
			done = next
			continue
		}
		target, err := os.Readlink(r.host(next))
		if err != nil { // not a symlink, or nothing
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("follow %s: %w", name, unix.ELOOP)
		}
		if path.IsAbs(target) {
			done = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}

// file is a file that was read, or could not be.
type file struct {
	path string
	data []byte // nothing is a mask
	err  error
}

// listing is what is in a directory.
type listing struct {
	root     rootDir
	name     string // as it was asked for
	resolved string
	entries  []fs.DirEntry // sorted by name
}

// list lists a directory. One that does not exist is empty.
func (r rootDir) list(name string) (listing, error) {
	resolved, err := r.chase(name, true)
	if err != nil {
		return listing{}, err
	}
	entries, err := os.ReadDir(r.host(resolved))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return listing{}, fmt.Errorf("list %s: %w", name, errors.Unwrap(err))
	}
	return listing{root: r, name: name, resolved: resolved, entries: entries}, nil
}

// read reads a file of the directory.
func (l listing) read(e fs.DirEntry) *file {
	f := &file{path: path.Join(l.name, e.Name())}
	if e.Type().IsRegular() { // spares the search for symlinks
		f.data, f.err = l.root.readResolved(f.path, path.Join(l.resolved, e.Name()))
	} else {
		f.data, f.err = l.root.read(f.path)
	}
	return f
}

// readConf reads the drop-ins of the directory. Hidden files are none, see
// hidden_or_backup_file() in systemd's src/basic/path-util.c.
func (l listing) readConf() []*file {
	var files []*file
	for _, e := range l.entries {
		if name := e.Name(); strings.HasSuffix(name, ".conf") && name[0] != '.' {
			files = append(files, l.read(e))
		}
	}
	return files
}

// read returns what is in a file; nothing, which is a mask, when it is a
// device node such as /dev/null (null_or_empty() in systemd's
// src/basic/stat-util.c).
func (r rootDir) read(name string) ([]byte, error) {
	resolved, err := r.chase(name, true)
	if err != nil {
		return nil, err
	}
	if resolved == devNull { // a root that is not running has no nodes in /dev
		return nil, nil
	}
	return r.readResolved(name, resolved)
}

// readResolved is read with the symlinks in name resolved already.
func (r rootDir) readResolved(name, resolved string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO that lies about must not block.
	f, err := os.OpenFile(r.host(resolved), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, errors.Unwrap(err))
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, errors.Unwrap(err))
	case info.Mode()&fs.ModeCharDevice != 0:
		return nil, nil
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("read %s: it is not a regular file", name)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", name, maxFile)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("read %s: it changed while it was read: %w", name, err)
	}
	return data, nil
}
