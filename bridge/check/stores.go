// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// stores looks at what is stored.
func (c *Checker) stores(ctx context.Context, found *Result) error {
	var list []*units.Store
	var own *units.Store // fdbridged's
	err := c.Stores.EachStore(ctx, func(s *units.Store) {
		if s.Unit == bridge.OwnUnit {
			own = s
		}
		switch {
		case c.Excluded(s.Unit):
		case s.OptedIn():
			list = append(list, s)
		default:
			found.Problems = append(found.Problems, notKept(s))
		}
	})
	if errors.Is(err, units.ErrManager) {
		return err
	}
	carries, failed := c.Stores.Carries(ctx)
	if failed != nil {
		return failed
	}
	if err != nil {
		found.add(Lossy, "Try again.", "not every fd store can be read: %v", err)
	}
	duplicator, err := c.Duplicator()
	if err != nil {
		found.add(Impossible, "Run as root, with kernel.yama.ptrace_scope below 3.",
			"the fds in the stores cannot be had from PID 1: %v", err)
		return nil
	}
	defer func() { _ = duplicator.Close() }() // it was only read from
	look := looking{found: found, duplicator: duplicator, seen: map[inode]bool{}, carries: carries}
	if look.sessions, err = bridge.FindSessions(ctx, c.Kernel, session.Path, duplicator); err != nil {
		return err
	}
	defer look.sessions.Close()
	for _, store := range list {
		unit := Unit{Unit: store.Unit, Required: c.Required(store.Unit), Entries: look.entries(store)}
		found.Units = append(found.Units, unit)
		found.Problems = append(found.Problems, lost(&unit)...)
	}
	return c.unclaimed(&look, own)
}

// unclaimed adds the sessions that came and that their units are not done with.
func (c *Checker) unclaimed(look *looking, own *units.Store) error {
	list, err := look.sessions.Unclaimed(own)
	for _, u := range list {
		unit := Unit{Unit: u.Unit, Required: c.Required(u.Unit)}
		for _, l := range u.Lost {
			unit.Entries = append(unit.Entries, Entry{Name: l.Name, Type: l.Type, Reason: l.Reason, remedy: remedyClaim})
		}
		look.found.Problems = append(look.found.Problems, lost(&unit)...)
		look.found.addUnit(unit)
	}
	return err
}

// addUnit adds a unit, or its entries where it is there already.
func (r *Result) addUnit(unit Unit) {
	at, there := slices.BinarySearchFunc(r.Units, unit.Unit, func(u Unit, name string) int { return strings.Compare(u.Unit, name) })
	if there {
		r.Units[at].Entries = append(r.Units[at].Entries, unit.Entries...)
	} else {
		r.Units = slices.Insert(r.Units, at, unit)
	}
}

// remedyClaim is for a session that came.
const remedyClaim = "Let the service take its files out of it and be done with it, or let go of it with fdbridgectl drop."

// inode is a file, wherever it is stored.
type inode struct{ dev, ino uint64 }

// notKept is the problem of a unit that has something stored and has not opted
// in. It would lose that by any stop, too, and many do well without, systemd's
// own logind for one: it alone makes no check fail.
func notKept(s *units.Store) Problem {
	p := Problem{
		Outcome: Carried, Unit: s.Unit,
		Message: fmt.Sprintf("its store ends with it: FileDescriptorStorePreserve=%s", s.Preserve),
		Remedy: "Set FileDescriptorStorePreserve=yes in the unit, or name it in Exclude= of fdbridge.conf " +
			"if it can do without.",
	}
	for i := range s.Entries {
		p.FDs = append(p.FDs, s.Entries[i].Name)
	}
	return p
}

// looking is what the judgement of a store takes.
type looking struct {
	found      *Result
	duplicator bridge.Duplicator
	sessions   *bridge.Sessions
	seen       map[inode]bool // what is in several stores takes its memory once
	carries    bool           // PID 1 carries stores, and sessions in them
}

// entries judges what is in a store.
func (l *looking) entries(store *units.Store) []Entry {
	list := store.Entries
	files, failed := l.duplicator.Dup(list)
	checked := make([]Entry, len(list))
	for i := range list {
		entry := &checked[i]
		entry.Name, entry.Type = list[i].Name, list[i].Type()
		in, err := kho.Inode{Mode: list[i].Mode}, failed[i]
		if file := files[i]; file != nil {
			in, err = kho.InodeOf(file.FD)
			_ = file.FD.Close() // it was only looked at
		}
		ours, came := l.sessions.Made(store.Unit, &list[i])
		switch {
		case l.carries && list[i].Session() || ours && came == nil:
			entry.Carried = true
			continue
		case ours:
			entry.Reason, entry.remedy = came.Error(), remedyClaim
			continue
		}
		entry.Reason, entry.remedy = refusal(entry.Type, in, err)
		if entry.Carried = entry.Reason == ""; !entry.Carried {
			continue
		}
		entry.Size = in.Size
		if id := (inode{list[i].Dev, list[i].Ino}); !l.seen[id] {
			l.seen[id] = true
			l.found.Memory.Carried += in.Size
			l.found.Memory.Needed += max(0, in.Size-in.Allocated)
		}
	}
	return checked
}

// lost are the problems of a unit: one for all fds that are lost for one reason.
func lost(unit *Unit) []Problem {
	type cause struct{ kind, reason string }
	found := map[cause]int{}
	var list []Problem
	for _, e := range unit.Entries {
		if e.Carried {
			continue
		}
		id := cause{e.Type, e.Reason}
		at, ok := found[id]
		if !ok {
			at = len(list)
			found[id] = at
			list = append(list, Problem{
				Outcome: Lossy, Unit: unit.Unit, Type: e.Type, Message: e.Reason, Remedy: e.remedy,
			})
		}
		list[at].FDs = append(list[at].FDs, e.Name)
	}
	return list
}

// remedies say by the type of an entry what a service can do instead of storing
// it.
var remedies = map[string]string{
	"socket":           "Let a socket unit hold it if it listens; connections end with the kernel.",
	"pipe":             "Make it anew at start; what is in it is lost.",
	"file":             "Open it by its path at start.",
	"directory":        "Open it by its path at start.",
	"character device": "Open it by its path at start.",
	"block device":     "Open it by its path at start.",
	"pidfd":            "Store none: no process outlives its kernel.",
	"luo_session":      "From systemd 261 on, systemd carries it; otherwise make it anew at start.",
}

// refusal says why the kernel would not carry a file of an entry's type, and what
// the service can do; nothing if it would. Of what is no regular file, in needs
// only the mode. failed is why the file could not be looked at.
//
// The kernel has the last word, see kho.Inode.Carried; the rest is to say why.
func refusal(kind string, in kho.Inode, failed error) (reason, remedy string) {
	regular := in.Mode&unix.S_IFMT == unix.S_IFREG
	switch {
	case regular && errors.Is(failed, units.ErrChanged):
		return failed.Error(), "Check again."
	case regular && failed != nil:
		return fmt.Sprintf("it cannot be had from PID 1: %v", failed), "Check again as root."
	case in.Carried():
		return "", ""
	case regular && in.FS == unix.HUGETLBFS_MAGIC:
		return "the kernel cannot carry huge pages", "Use a memfd without MFD_HUGETLB."
	case regular && in.FS == unix.SECRETMEM_MAGIC:
		return "the kernel cannot carry secret memory", "Use a memfd of memfd_create(2), if it may be handed over."
	case regular && in.FS == unix.TMPFS_MAGIC:
		return "the kernel carries files in memory only if they have no name", "Use a memfd, or O_TMPFILE."
	}
	remedy = remedies[kind]
	if remedy == "" {
		remedy = "Make it anew at start."
	}
	return session.ErrUnsupported.Error(), remedy
}
