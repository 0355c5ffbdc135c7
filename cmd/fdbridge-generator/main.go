// SPDX-License-Identifier: Apache-2.0

// Command fdbridge-generator is a systemd generator, see systemd.generator(7): at boot
// and at every daemon-reload it gives each service whose fd store is to be
// preserved the drop-in that brings its fds back. It reads unit files and
// writes drop-ins; it talks to nobody.
package main

import (
	"os"

	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

func main() { os.Exit(run("/", os.Args[1:])) }

// run does the work on the system below root and returns the exit status.
func run(root string, args []string) int {
	log := openLog(root)
	defer log.close()
	// systemd gives the normal, the early and the late directory; a test may
	// give one for all three. The normal one is the one for drop-ins that the
	// administrator's own may overrule.
	if len(args) != 1 && len(args) != 3 {
		log.write(logErr, "takes one directory or three, see systemd.generator(7)")
		return 1
	}
	problems, err := generator.Run(generator.Options{
		Root: root,
		Dir:  args[0],
		Path: unitfile.SearchPath(os.LookupEnv("SYSTEMD_UNIT_PATH")),
		Exclude: func() (func(string) bool, []error) {
			c, problems := config.Load(root)
			return c.Excluded, problems
		},
	})
	for _, problem := range problems {
		log.write(logWarning, problem.Error())
	}
	if err != nil {
		log.write(logErr, err.Error())
		return 1
	}
	return 0
}
