// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

// Options say what Run works on.
type Options struct {
	// Root is the directory below which everything is read, "/" but in tests.
	Root string
	// Dir is the generator's normal directory, its first argument. It is not
	// taken to be below Root.
	Dir string
	// Path is where unit files are, see unitfile.SearchPath.
	Path []string
	// Exclude returns what tells which units are left alone, and what was
	// wrong in finding out. It is not called when there is nothing to do.
	Exclude func() (exclude func(unit string) bool, problems []error)
}

// Run writes the files of Plan; none when there is no /dev/liveupdate, which
// the kernel makes only when it was built and booted for live update
// (CONFIG_LIVEUPDATE in Linux 6.19, kho=on liveupdate=on).
//
// Problems are those of single units, directories and files, one sentence
// each; the others were done all the same. The error is set when nothing could
// be written that was to be.
func Run(o Options) (problems []error, err error) {
	if _, err := os.Stat(filepath.Join(o.Root, "dev/liveupdate")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("look for live update: %w", err)
	}
	exclude, problems := o.Exclude()
	set, unread := unitfile.Load(o.Root, o.Path)
	files, bad := Plan(set, exclude)
	problems = append(append(problems, unread...), bad...)
	written := 0
	for _, f := range files {
		if err := f.write(o.Dir); err != nil {
			problems = append(problems, fmt.Errorf("write %s: %w", f.Path, err))
			continue
		}
		written++
	}
	if len(files) > 0 && written == 0 {
		return problems, fmt.Errorf("none of %d files could be written below %s", len(files), o.Dir)
	}
	return problems, nil
}

// write makes the file. Nobody reads the directory before all generators have
// ended, and it is new for each run, so there is nothing to replace.
func (f File) write(dir string) error {
	name := filepath.Join(dir, f.Path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if f.Link != "" {
		return os.Symlink(f.Link, name)
	}
	return os.WriteFile(name, f.Data, 0o644)
}
