// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"path"
	"strings"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

// ownRoot tells whether the processes of ExecStartPre= have another root directory than
// the machine, and which setting says so (EXEC_APPLY_CHROOT in src/core/service.c, systemd
// 257).
func ownRoot(s unitfile.Settings) (setting string, apart bool) {
	if isYes(s, "RootDirectoryStartOnly") {
		return "", false
	}
	for _, key := range []string{"RootDirectory", "RootImage"} {
		if value, _ := s.Last(service, key, anything); value != "" && path.Clean(value) != "/" {
			return key + "=" + value, true
		}
	}
	return "", false
}

// hidden returns which setting hides something from the processes of ExecStartPre=
// that fdbridge-inject needs, and what. They have the unit's mounts even with all
// privileges, but are spared what is a sandbox, such as InaccessiblePaths= and
// NoExecPaths= (apply_mount_namespace in src/core/exec-invoke.c, systemd 257).
func hidden(s unitfile.Settings) (setting, dir string) {
	for _, value := range s.All(service, "TemporaryFileSystem") {
		for _, field := range strings.Fields(value) {
			at, _, _ := strings.Cut(field, ":")
			for _, needed := range []string{"/usr/lib/fdbridge", "/run/fdbridge"} {
				if within(needed, at) && !bound(s, needed, at) {
					return "TemporaryFileSystem=" + field, needed
				}
			}
		}
	}
	return "", ""
}

// bound tells whether a directory is mounted into a file system mounted at a path.
func bound(s unitfile.Settings, dir, at string) bool {
	for _, value := range append(s.All(service, "BindPaths"), s.All(service, "BindReadOnlyPaths")...) {
		for _, field := range strings.Fields(value) {
			parts := strings.Split(strings.TrimPrefix(field, "-"), ":")
			if to := parts[min(1, len(parts)-1)]; within(dir, to) && within(to, at) {
				return true
			}
		}
	}
	return false
}

// within tells whether a path is another or below it.
func within(name, dir string) bool {
	return strings.HasPrefix(path.Clean(name)+"/", strings.TrimSuffix(path.Clean(dir), "/")+"/")
}
