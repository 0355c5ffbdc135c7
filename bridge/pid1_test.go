// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/notify"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// manager stands in for PID 1: units with stores that hold real files, and
// what is asked of PID 1 about them. It is in this process, so that a real
// Duplicator finds the files.
type manager struct {
	t      testing.TB
	kernel session.Kernel // which knows what is a session
	mu     sync.Mutex
	units  map[string]*unit
	number int // the highest fd that was stored
	// asked counts the questions for stores that are not those of a Preserver.
	asked int
	// peer is the unit that every client of a socket belongs to, if any.
	peer string
	// err is what every question is answered with when it is not nil.
	err error
	// carries says that it carries stores itself, and emptied is what it was
	// asked to empty; emptyErr is how it answers that.
	carries  bool
	emptied  []string
	emptyErr error
	// blind is why its fds cannot be duplicated when it is not nil.
	blind error
	// closed says that it has no sessions any more where they were.
	closed bool
	// changed is called before each duplication, to change a store then.
	changed func()
	// ahead are the files that were duplicated ahead, by unit.
	ahead map[string][]*units.File
	// stale are stores as they were seen ahead, told of once before it is said that they
	// have changed.
	stale []*units.Store
	// unsure is what it answers with about all stores, of which it tells nevertheless.
	unsure error
	// running is the unit that runs when all others have stopped, if any.
	running string
	// identities counts the questions for who a unit is.
	identities int
	// looks counts those about a service that wants a session.
	looks atomic.Int32
}

type unit struct {
	preserve string
	max      uint32
	store    []notify.Passed // the front is what was stored last
	// identity is who it is; a unit that is loaded and asks for its fds, but for
	// what a test sets.
	identity units.Identity
	// facts are what the generator knows of it, with its identity, if known.
	facts generator.Facts
	known bool
}

func newManager(t testing.TB) *manager {
	m := &manager{t: t, units: map[string]*unit{}}
	m.add(bridge.OwnUnit, "yes")
	m.add(rescueUnit, "yes")
	t.Cleanup(func() {
		for name := range m.units {
			m.empty(name)
		}
	})
	return m
}

// ownSession is the name of what is listed as a session, whatever it is.
const ownSession = "session"

// rescueUnit is the unit of fdbridged preserve.
const rescueUnit = bridge.PreserveUnit

// add adds a unit with room for 1,000 fds.
func (m *manager) add(name, preserve string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[name] = &unit{preserve: preserve, max: 1000, identity: units.Identity{
		Unit: name, Load: "loaded", FragmentPath: "/etc/systemd/system/" + name, User: "nobody",
		DropIns: []string{"/run/systemd/generator/" + name + ".d/zz-fdbridge.conf"},
	}}
}

// empty empties a unit's store.
func (m *manager) empty(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.units[name].store {
		_ = e.FD.Close()
	}
	m.units[name].store = nil
}

// passed returns duplicates of a unit's store, as its next process gets them.
func (m *manager) passed(name string) []notify.Passed {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []notify.Passed
	for _, e := range m.units[name].store {
		dup, err := e.FD.Dup()
		if err != nil {
			m.t.Fatal(err)
		}
		list = append(list, notify.Passed{Name: e.Name, FD: dup})
	}
	return list
}

func (m *manager) EachStore(ctx context.Context, each func(s *units.Store)) error {
	if stale := m.stale; stale != nil {
		m.stale = nil
		for _, s := range stale {
			each(s)
		}
		return fmt.Errorf("%s: %w", stale[0].Unit, units.ErrStale)
	}
	stores, err := m.Stores(ctx)
	for i := range stores {
		each(&stores[i])
	}
	return errors.Join(err, m.unsure)
}

func (m *manager) Files(s *units.Store) []*units.File {
	files := m.ahead[s.Unit]
	delete(m.ahead, s.Unit)
	return files
}

// look duplicates what is in a unit's store ahead.
func (m *manager) look(name string) (*units.Store, []*units.File) {
	m.t.Helper()
	store, err := m.store(name)
	if err != nil {
		m.t.Fatal(err)
	}
	d, err := m.duplicator()
	if err != nil {
		m.t.Fatal(err)
	}
	files, failed := d.Dup(store.Entries)
	if err := errors.Join(append(failed, d.Close())...); err != nil {
		m.t.Fatal(err)
	}
	if m.ahead == nil {
		m.ahead = map[string][]*units.File{}
	}
	m.ahead[name] = files
	return &store, files
}

func (m *manager) Stores(context.Context) ([]units.Store, error) {
	var list []units.Store
	for name, u := range m.units {
		if len(u.store) == 0 {
			continue
		}
		store, err := m.store(name)
		if err != nil {
			return nil, err
		}
		store.Kept = u.preserve == "yes" && name != m.running
		list = append(list, store)
	}
	slices.SortFunc(list, func(a, b units.Store) int { return -1 + 2*b2i(a.Unit > b.Unit) })
	return list, m.err
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (m *manager) Entries(_ context.Context, name string) ([]units.Entry, error) {
	store, err := m.store(name)
	return store.Entries, err
}

func (m *manager) Carries(context.Context) (bool, error) { return m.carries, m.err }

func (m *manager) Empty(_ context.Context, names []string) error {
	m.emptied = names
	if m.emptyErr != nil {
		return m.emptyErr
	}
	for _, name := range names {
		m.empty(name)
	}
	return nil
}

func (m *manager) store(name string) (units.Store, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.units[name]
	store := units.Store{Unit: name, Max: u.max, Preserve: u.preserve, FragmentPath: u.identity.FragmentPath, User: u.identity.User, Group: u.identity.Group}
	for _, e := range u.store {
		st, err := e.FD.Stat()
		if err != nil {
			return store, err
		}
		link, err := e.FD.Link()
		if err != nil {
			return store, err
		}
		flags, err := units.OpenFlags(e.FD)
		if err != nil {
			return store, err
		}
		if name, err := session.Adopt(m.kernel, e.FD).Name(); err == nil {
			link, st.Mode = "anon_inode:[luo_session] "+name, 0
			if len(name) > 38 { // the kernel cannot show it
				link = ""
			}
		}
		if e.Name == ownSession {
			link, st.Mode = "anon_inode:[luo_session] it", 0
		}
		store.Entries = append(store.Entries, units.Entry{
			Name: e.Name, Mode: st.Mode, Dev: st.Dev, Ino: st.Ino, Rdev: st.Rdev, Path: link, Flags: flags,
		})
	}
	return store, m.err
}

func (m *manager) OptedIn(_ context.Context, _ []string) ([]units.Store, error) {
	var list []units.Store
	for name := range m.units {
		store, err := m.store(name)
		if err != nil {
			return nil, err
		}
		if store.Entries = nil; store.OptedIn() {
			list = append(list, store)
		}
	}
	return list, m.err
}

func (m *manager) Stored(_ context.Context, names []string) (map[string]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	stored := map[string]int{}
	for _, name := range names {
		stored[name] = 0
		if m.units[name] == nil {
			continue
		}
		for _, p := range m.units[name].store {
			if _, err := session.Adopt(m.kernel, p.FD).Name(); err != nil && p.Name != ownSession {
				stored[name]++
			}
		}
	}
	return stored, m.err
}

// Idle knows of a unit only whether something is in its store.
func (m *manager) Idle(_ context.Context, names []string) (map[string]bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	idle := map[string]bool{}
	for _, name := range names {
		idle[name] = m.units[name] == nil || len(m.units[name].store) == 0
	}
	return idle, m.err
}

func (m *manager) max(unit string) uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.units[unit].max
}

// setMax sets a unit's FileDescriptorStoreMax=.
func (m *manager) setMax(unit string, n uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[unit].max = n
}

// duplicator is a real one, but for sessions: those of a fake kernel cannot be
// told by their links.
type duplicator struct {
	*units.Duplicator
	m *manager
}

func (m *manager) duplicator() (bridge.Duplicator, error) {
	if m.blind != nil {
		return nil, m.blind
	}
	d, err := units.OpenDuplicator(os.Getpid())
	return duplicator{d, m}, err
}

func (d duplicator) Dup(entries []units.Entry) ([]*units.File, []error) {
	if d.m.changed != nil {
		d.m.changed()
	}
	return d.Duplicator.Dup(entries)
}

func (d duplicator) Sessions() ([]*fd.FD, error) {
	if d.m.closed {
		return nil, nil
	}
	var list []*fd.FD
	for unit := range d.m.units {
		for _, p := range d.m.passed(unit) {
			list = append(list, p.FD)
		}
	}
	return list, nil
}

// above duplicates an fd as PID 1 receives one: with a higher number than those
// before.
func (m *manager) above(f *fd.FD) (*fd.FD, error) {
	var dup *fd.FD
	m.number = max(m.number+1, 500)
	err := f.Do(func(raw int) error {
		raw, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, m.number)
		if err == nil {
			dup, m.number = fd.New(raw), raw
		}
		return err
	})
	return dup, err
}

// keeper is the way to one unit's store.
type keeper struct {
	m    *manager
	unit string
}

func (k keeper) Store(name string, f *fd.FD) error {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	dup, err := k.m.above(f)
	if err != nil {
		return err
	}
	u := k.m.units[k.unit]
	if len(u.store) >= int(u.max) {
		return dup.Close() // dropped with a log message, as PID 1 does
	}
	for _, e := range u.store {
		if same, err := e.FD.SameOpenFile(f); same || err != nil {
			return errors.Join(err, dup.Close()) // PID 1 takes no open file twice
		}
	}
	u.store = slices.Insert(u.store, 0, notify.Passed{Name: name, FD: dup})
	return nil
}

func (k keeper) Remove(name string) error {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	u := k.m.units[k.unit]
	u.store = slices.DeleteFunc(u.store, func(e notify.Passed) bool {
		if e.Name == name {
			_ = e.FD.Close()
		}
		return e.Name == name
	})
	return nil
}

func (k keeper) Flush() error { return nil }

func (k keeper) Barrier() error { return nil }

func (k keeper) ExtendTimeout(time.Duration) error { return nil }

// queue is a keeper whose messages PID 1 reads when it is waited for.
type queue struct {
	keeper
	mu     sync.Mutex
	unread []func() error
	files  []notify.Passed // that come with them
}

func (q *queue) Store(name string, f *fd.FD) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	dup, err := f.Dup()
	if err != nil {
		return err
	}
	q.files = append(q.files, notify.Passed{Name: name, FD: dup})
	q.unread = append(q.unread, func() error { return q.keeper.Store(name, dup) })
	return nil
}

func (q *queue) Remove(name string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unread = append(q.unread, func() error { return q.keeper.Remove(name) })
	return nil
}

func (q *queue) Barrier() (err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, read := range q.unread {
		err = errors.Join(err, read())
	}
	q.forget()
	return err
}

// keeps tells whether PID 1 has not read that a file is to be kept.
func (q *queue) keeps() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.files, func(p notify.Passed) bool { return strings.HasPrefix(p.Name, "f-") })
}

// drop throws away what is not read.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget()
}

func (q *queue) forget() {
	for _, p := range q.files {
		_ = p.FD.Close()
	}
	q.files, q.unread = nil, nil
}

// put stores a memfd with the given contents in a unit's store.
func (m *manager) put(name, entry, contents string) {
	m.t.Helper()
	m.putMemfd([]string{name}, entry, contents, unix.O_RDWR, unix.MFD_ALLOW_SEALING)
}

// putPipe stores the reading end of a pipe, which no kernel carries.
func (m *manager) putPipe(name, entry string) {
	m.t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		m.t.Fatal(err)
	}
	read, write := fd.New(p[0]), fd.New(p[1])
	defer write.Close()
	defer read.Close()
	if err := (keeper{m: m, unit: name}).Store(entry, read); err != nil {
		m.t.Fatal(err)
	}
}

// contents describes a unit's store: name, contents and position, in order.
func (m *manager) contents(name string) []string {
	m.t.Helper()
	list := []string{}
	for _, p := range m.passed(name) {
		err := p.FD.Do(func(raw int) error {
			buffer := make([]byte, 100)
			n, err := unix.Pread(raw, buffer, 0)
			if err != nil {
				return err
			}
			position, err := unix.Seek(raw, 0, unix.SEEK_CUR)
			list = append(list, fmt.Sprintf("%s=%s@%d", p.Name, buffer[:n], position))
			return err
		})
		if err != nil {
			m.t.Fatal(err)
		}
		_ = p.FD.Close()
	}
	return list
}
