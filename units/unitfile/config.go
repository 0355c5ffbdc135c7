// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"errors"
	"io/fs"
	"path"
)

// configDirs are where configuration files lie, the one that wins first:
// CONF_PATHS in systemd's src/basic/constants.h.
func configDirs() []string { return []string{"/etc", "/run", "/usr/local/lib", "/usr/lib"} }

// LoadConfig reads a configuration file with its drop-ins as systemd's daemons
// do: the first name ("fdbridge/fdbridge.conf") in /etc, /run, /usr/local/lib
// and /usr/lib, all below root, and then the .conf files in the name.d
// directories of all four, sorted by file name over all directories; of those
// with the same name only the first counts. A symlink to /dev/null or an empty
// file hides those after it. See
// config_parse_standard_file_with_dropins_full() in systemd's
// src/shared/conf-parser.c.
//
// It returns what it could read, and what it could not, named with file and
// line. No file at all is no error.
func LoadConfig(root, name string) (Settings, []error) {
	r := rootDir(root)
	var (
		u        Unit
		dropIns  []*file
		problems []error
	)
	for _, dir := range configDirs() {
		main := &file{path: path.Join(dir, name)}
		if main.data, main.err = r.read(main.path); !errors.Is(main.err, fs.ErrNotExist) {
			u.addDropIn(main)
			break
		}
	}
	for _, dir := range configDirs() {
		listed, err := r.list(path.Join(dir, name+".d"))
		if err != nil {
			problems = append(problems, err)
		}
		dropIns = append(dropIns, listed.readConf()...)
	}
	for _, f := range sortedFiles(dropIns) {
		u.addDropIn(f)
	}
	return u.Settings, append(problems, u.Problems...)
}
