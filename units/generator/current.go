// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"os"
	"path/filepath"
	"sync"
)

// Current tells what the units' files say, as PID 1 has loaded them last: each
// daemon-reload makes another Register. Its method may be called from several
// goroutines.
type Current struct {
	// Options are those that the generator is run with.
	Options

	mu       sync.Mutex
	seen     os.FileInfo // what register was read from; nil when that is not known
	register Register
	covers   bool // the units in register have their drop-in
}

// Facts returns what the files of a unit say, or those of its template; nothing
// of one that has not opted in. loaded reports whether PID 1 has made of them
// just what the facts say. It loads the units that the generator has given a
// drop-in together with fdbridged.service, which is before them. Others, as most
// instances of templates, it may have loaded since then from files that had
// changed. Where the generator has not run the facts are those of the files as
// they are now.
func (c *Current) Facts(unit string) (facts Facts, loaded bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	if own, ok := c.register[unit]; ok {
		return own, c.covers && !own.Unclear && !own.Left
	}
	facts, _ = c.register.Lookup(unit)
	return facts, false
}

// refresh reads the register unless it is the one that was read last.
func (c *Current) refresh() {
	now, err := os.Stat(filepath.Join(c.Dir, registerName))
	if err != nil { // then the directory is new with each reload, too
		now, _ = os.Stat(c.Dir)
	}
	if now != nil && c.seen != nil && os.SameFile(now, c.seen) && now.ModTime().Equal(c.seen.ModTime()) && now.Size() == c.seen.Size() {
		return
	}
	c.seen = now
	c.register, err = ReadRegister(c.Dir)
	if err != nil {
		exclude, _ := c.Exclude() // what is wrong there and in the files others say
		c.register, _ = MakeRegister(c.Root, c.Path, exclude)
	}
	c.covers = err == nil && !c.register.Masked()
}
