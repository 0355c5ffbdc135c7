// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

var (
	// ErrChanged says that no fd of PID 1 fits the entry any more: the store
	// has changed since it was dumped. Dump it again.
	ErrChanged = errors.New("the store has changed since it was listed")
	// ErrAmbiguous says that the entry shares its inode with other files, so
	// that it cannot be said which fd of PID 1 is meant.
	ErrAmbiguous = errors.New("files of this kind cannot be told apart in PID 1")
)

// file is what identifies an open file of PID 1: an inode of its own, or for
// anonymous inodes, which all share one, what the link says.
type file struct {
	dev, ino uint64
	link     string
}

// Duplicator duplicates fds out of the stores that a process, PID 1, holds.
// It looks at the process's fds once, when it is opened, and trusts no number:
// each fd it hands out was compared with the entry afterwards. Its methods may
// be called from several goroutines.
type Duplicator struct {
	pidfd *fd.FD
	procs *fd.FD // /proc/PID/fd
	found map[file]*numbers
}

// numbers are the process's descriptors of one file.
type numbers struct {
	mu      sync.Mutex
	list    []int // those that were not given out
	scanned int   // how many there were
}

// OpenDuplicator opens a Duplicator for pid, which is 1 but in tests. It needs
// CAP_SYS_PTRACE over pid and a Yama scope below 3 (mm access is checked as
// PTRACE_MODE_ATTACH_REALCREDS, kernel/pid.c, pidfd_getfd).
func OpenDuplicator(pid int) (*Duplicator, error) {
	raw, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open a pidfd of process %d: %w", pid, err)
	}
	d := &Duplicator{pidfd: fd.New(raw), found: map[file]*numbers{}}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	raw, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		d.procs = fd.New(raw)
		err = d.scan()
	}
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	return d, nil
}

// Close releases the Duplicator; the fds it gave out stay open.
func (d *Duplicator) Close() error {
	return errors.Join(d.pidfd.Close(), d.procs.Close())
}

// scan looks at every fd of the process.
func (d *Duplicator) scan() error {
	return d.procs.Do(func(dir int) error {
		dup, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		list := os.NewFile(uintptr(dup), "fd")
		defer list.Close()
		for {
			names, err := list.Readdirnames(1024)
			for _, name := range names {
				if number, err := strconv.Atoi(name); err == nil {
					d.look(dir, name, number)
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

// look records one fd. One that is gone meanwhile is none that was listed.
func (d *Duplicator) look(dir int, name string, number int) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, 0) != nil {
		return
	}
	key := file{dev: st.Dev, ino: st.Ino}
	if st.Mode&unix.S_IFMT == 0 { // an anonymous inode has no file type
		key.link = readlink(dir, name)
	}
	if d.found[key] == nil {
		d.found[key] = &numbers{}
	}
	d.found[key].list = append(d.found[key].list, number)
	d.found[key].scanned++
}

// linkTooLong stands for a link that the kernel cannot show.
const linkTooLong = "?"

func readlink(dir int, name string) string {
	var link [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, link[:])
	if errors.Is(err, unix.ENAMETOOLONG) {
		return linkTooLong
	}
	if err != nil {
		return ""
	}
	return string(link[:n])
}

// File is a duplicate of an entry's fd, and what was seen of it then. Only what
// is like a regular file, as memfds are, has anything but zero.
type File struct {
	FD       *fd.FD // close-on-exec; whoever has the File owns it
	Dev, Ino uint64
	Size     int64 // bytes
	Position int64 // bytes from the beginning
	Seals    int   // of fcntl(2)'s F_GET_SEALS
	// Mode, UID and GID are those of stat(2).
	Mode, UID, GID uint32
	// Guessed says that the process has other open files of this inode, at
	// other positions, one of which the entry may be instead.
	Guessed bool

	// Flags are those of fcntl(2)'s F_GETFL, as OpenFlags has them.
	Flags int

	number int // the process's
}

// Renew looks again at what others that have the same regular file open can change: its
// size, position, seals, mode, owner and open flags.
func (f *File) Renew() error {
	st, err := f.FD.Stat()
	if err != nil {
		return err
	}
	f.stat(&st)
	if f.Flags, err = OpenFlags(f.FD); err != nil {
		return err
	}
	return f.FD.Do(f.look)
}

// Dup duplicates the fds of a store, whose entries are in the order of PID 1's
// dump. Each entry has either a File, which the caller owns, or an error:
// ErrChanged when no fd of the process has the entry's device, inode, kind and
// open flags, ErrAmbiguous when more than one anonymous inode has its link.
//
// Where the process has several open files of one inode, PID 1 does not say
// which of them an entry is; it shows in nothing but the position. They are told
// apart by their numbers: see order.
func (d *Duplicator) Dup(entries []Entry) ([]*File, []error) {
	files, failed := make([]*File, len(entries)), make([]error, len(entries))
	several := map[*numbers][]int{} // the entries that are one of several
	for i := range entries {
		key := file{dev: entries[i].Dev, ino: entries[i].Ino}
		if entries[i].Anonymous() {
			key.link = entries[i].Path
		}
		switch found := d.found[key]; {
		case found == nil:
			failed[i] = ErrChanged
		case found.count() > 1 && entries[i].Anonymous():
			failed[i] = fmt.Errorf("%s: %w", entries[i].Type(), ErrAmbiguous)
		case found.count() > 1:
			several[found] = append(several[found], i)
		default:
			files[i], failed[i] = d.only(found, &entries[i])
		}
	}
	known := order(files)
	for found, list := range several {
		d.tellApart(found, list, entries, known, files, failed)
	}
	return files, failed
}

func (n *numbers) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.list)
}

// only duplicates a file's only number, which is not given out again.
func (d *Duplicator) only(found *numbers, e *Entry) (*File, error) {
	found.mu.Lock()
	defer found.mu.Unlock()
	if len(found.list) == 0 {
		return nil, ErrChanged
	}
	f, err := d.take(found.list[0], e)
	if f == nil && err == nil {
		err = ErrChanged
	}
	if err == nil {
		found.list = nil
	}
	return f, err
}

// certain duplicates the fds of a store, which are all of regular files, if the process has
// one descriptor of each; it returns nil otherwise, and then has given out nothing that
// another store may have.
func (d *Duplicator) certain(entries []Entry) []*File {
	if slices.ContainsFunc(entries, func(e Entry) bool { return !d.single(&e) }) {
		return nil
	}
	files, _ := d.Dup(entries)
	if !slices.Contains(files, nil) {
		return files
	}
	for _, f := range files {
		if f != nil {
			_ = f.FD.Close()
		}
	}
	return nil
}

// single tells whether the process had one descriptor of a regular file when it was looked
// at, whether that was given out or not.
func (d *Duplicator) single(e *Entry) bool {
	found := d.found[file{dev: e.Dev, ino: e.Ino}]
	return found != nil && found.scanned == 1
}

// leave leaves out what was given out otherwise.
func (d *Duplicator) leave(f *File) {
	if found := d.found[file{dev: f.Dev, ino: f.Ino}]; found != nil {
		found.list = slices.DeleteFunc(found.list, func(n int) bool { return n == f.number })
	}
}

// sessionLink stands before the name in the link of a live-update session
// (kernel/liveupdate/luo_session.c).
const sessionLink = anonInode + "[luo_session]"

// Sessions returns duplicates of all of the process's fds that may be
// live-update sessions; the caller owns them and asks each for its name. The
// link tells it unless it is too long for the kernel to be shown, above 63
// bytes (dynamic_dname in fs/d_path.c); PID 1's dump has no path then either. What the process
// has closed since it was looked at is left out.
func (d *Duplicator) Sessions() ([]*fd.FD, error) {
	var found []*fd.FD
	for key, numbers := range d.found {
		if !strings.HasPrefix(key.link, sessionLink) && key.link != linkTooLong {
			continue
		}
		for _, number := range numbers.list {
			f, err := d.get(number)
			if errors.Is(err, unix.EBADF) { // as when its service was done with it meanwhile
				continue
			}
			if err != nil {
				for _, f := range found {
					_ = f.Close()
				}
				return nil, err
			}
			found = append(found, f)
		}
	}
	return found, nil
}

// take duplicates one fd of the process and compares it with the entry; it
// returns nil when it is another file by now.
func (d *Duplicator) take(number int, e *Entry) (*File, error) {
	f, err := d.get(number)
	if errors.Is(err, unix.EBADF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	seen, err := see(f, e)
	if seen == nil {
		_ = f.Close()
		return nil, err
	}
	seen.number = number
	return seen, nil
}

// get duplicates one fd of the process, whatever it is.
func (d *Duplicator) get(number int) (*fd.FD, error) {
	var f *fd.FD
	err := d.pidfd.Do(func(pidfd int) error {
		raw, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			return fmt.Errorf("duplicate fd %d of the process: %w", number, err)
		}
		f = fd.New(raw)
		return nil
	})
	return f, err
}

// see compares an fd with what PID 1 said of it, and returns nil when it is
// another.
func see(f *fd.FD, e *Entry) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Dev != e.Dev || st.Ino != e.Ino || st.Mode&unix.S_IFMT != e.Mode&unix.S_IFMT || st.Rdev != e.Rdev {
		return nil, nil
	}
	if e.Anonymous() {
		if link, err := f.Link(); err != nil || link != e.Path {
			return nil, err
		}
		return &File{FD: f, Dev: st.Dev, Ino: st.Ino}, nil
	}
	flags, err := OpenFlags(f)
	if err != nil || flags != e.Flags {
		return nil, err
	}
	seen := &File{FD: f, Dev: st.Dev, Ino: st.Ino, Flags: flags}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		seen.stat(&st)
		err = f.Do(seen.look)
	}
	if err != nil {
		return nil, err
	}
	return seen, nil
}

// stat adds what stat(2) says of a regular file.
func (f *File) stat(st *unix.Stat_t) {
	f.Size, f.Mode, f.UID, f.GID = st.Size, st.Mode, st.Uid, st.Gid
}

// look adds what else only a regular file has.
func (f *File) look(raw int) (err error) {
	if f.Position, err = unix.Seek(raw, 0, unix.SEEK_CUR); err != nil {
		return os.NewSyscallError("lseek", err)
	}
	// EINVAL: not a file that can have seals.
	if seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); err == nil {
		f.Seals = seals
	}
	return nil
}

// oLargefile is O_LARGEFILE as the kernel knows it, which PID 1 leaves out of
// its dump; in the syscall packages for 64-bit machines it is 0.
const oLargefile = 0o100000

// OpenFlags returns the access mode and status flags of an open file as PID 1
// dumps them, without O_LARGEFILE.
func OpenFlags(f *fd.FD) (int, error) {
	var flags int
	err := f.Do(func(raw int) (err error) {
		flags, err = unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0)
		return os.NewSyscallError("fcntl(F_GETFL)", err)
	})
	return flags &^ oLargefile, err
}
