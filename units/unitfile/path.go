// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"path"
	"slices"
	"strings"
)

// SearchPath returns where the system manager looks for unit files, the
// directory that wins first. The value and presence of $SYSTEMD_UNIT_PATH are
// given by the caller, as from os.LookupEnv: it replaces the usual path, or is
// put before it when it ends in a colon. See lookup_paths_init() in systemd's
// src/libsystemd/sd-path/path-lookup.c.
//
// The directories of generators are left out: generators run in parallel, so
// what one of them finds there is the output of none, some or all of the
// others, and of the run before. A program that is no generator takes LoadedPath.
func SearchPath(env string, set bool) []string {
	return slices.DeleteFunc(LoadedPath(env, set), func(dir string) bool {
		return strings.HasPrefix(dir, "/run/systemd/generator")
	})
}

// LoadedPath is SearchPath with the directories of generators, which are complete
// once the service manager has loaded its units.
func LoadedPath(env string, set bool) []string {
	var dirs []string
	if set {
		for dir := range strings.SplitSeq(env, ":") {
			if dir != "" {
				dirs = append(dirs, path.Join("/", dir))
			}
		}
	}
	if !set || strings.HasSuffix(env, ":") {
		dirs = append(dirs,
			"/etc/systemd/system.control",
			"/run/systemd/system.control",
			"/run/systemd/transient",
			"/run/systemd/generator.early",
			"/etc/systemd/system",
			"/etc/systemd/system.attached",
			"/run/systemd/system",
			"/run/systemd/system.attached",
			"/run/systemd/generator",
			"/usr/local/lib/systemd/system",
			"/usr/lib/systemd/system",
			"/run/systemd/generator.late")
	}
	var unique []string
	for _, dir := range dirs {
		if !slices.Contains(unique, dir) {
			unique = append(unique, dir)
		}
	}
	return unique
}
