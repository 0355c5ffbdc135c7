// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"time"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// daemon is an fdbridged.
type daemon struct {
	w        *world
	holder   *bridge.Holder
	server   *bridge.Server
	socket   string
	listener *wire.Listener
	stop     func() // as on SIGTERM
}

// start starts an fdbridged with what is in its unit's store; ctx bounds how long
// it restores.
func (w *world) start(ctx context.Context, socket string, store bridge.Keeper) *daemon {
	w.t.Helper()
	log := journal.To(w)
	d := &daemon{w: w, socket: socket}
	d.holder = &bridge.Holder{Kernel: w.kernel, Device: session.Path, Keeper: store, Rescued: w.rescued, Log: log}
	var err error
	if d.listener, err = wire.Listen(socket); err != nil {
		w.t.Fatal(err)
	}
	d.holder.Restore(ctx, w.passed(bridge.OwnUnit))
	serving, cancel := context.WithCancel(w.t.Context())
	server := bridge.NewServer()
	d.server = server
	server.Holder, server.PID1, server.UnitOf, server.Log = d.holder, w.manager, w.unitOf, log
	server.StartsDir = w.startsDir
	server.Duplicator, server.Facts = w.duplicator, w.facts
	server.Excluded, server.Started = func(unit string) bool { return unit == "excluded.service" }, func(string) { w.starts <- struct{}{} }
	if w.impatient > 0 {
		server.RequestTimeout = w.impatient
	}
	server.QueueTimeout = cmp.Or(w.queueTimeout, server.QueueTimeout)
	server.WaitInterval = cmp.Or(w.waitInterval, time.Hour)
	if err := server.Begin(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(serving, d.listener) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		_ = d.listener.Close()
		if err := <-done; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
		if err := d.holder.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(d.stop)
	return d
}

func (m *manager) unitOf(*fd.FD) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peer == "" {
		return "", units.ErrNoUnit
	}
	return m.peer, nil
}

// setPeer says which unit clients belong to from now on.
func (m *manager) setPeer(unit string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peer = unit
}

// hangUp breaks all connections to the daemon, as its end does.
func (d *daemon) hangUp() {
	_ = d.listener.Close()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		d.w.t.Error(err)
	}
	for _, entry := range list {
		raw, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// Sockets at the daemon's end have its address.
		if at, err := unix.Getsockname(raw); err == nil {
			if at, ok := at.(*unix.SockaddrUnix); ok && at.Name == d.socket {
				_ = unix.Shutdown(raw, unix.SHUT_RDWR)
			}
		}
	}
}

// inject returns a unit's fdbridge-inject, in an invocation of its own.
func (w *world) inject(socket, unit string, store deliver.Store) *deliver.Deliverer {
	w.setPeer(unit)
	return &deliver.Deliverer{
		Socket: socket, Kernel: w.kernel, Store: store, Max: int(w.max(unit)),
		Invocation: w.invoke(unit),
		Lost:       func(string, error) {},
		Altered:    func(name string, err error) { w.t.Errorf("%q of %s: %v", name, unit, err) },
	}
}

// invoke leaves word of a unit's start, and returns its invocation.
func (w *world) invoke(unit string) string {
	w.t.Helper()
	id := fmt.Sprintf("%032x", w.invocations.Add(1))
	link := filepath.Join(w.startsDir, "invocation:"+unit)
	if err := errors.Join(os.Symlink(id, link+id), os.Rename(link+id, link)); err != nil {
		w.t.Fatal(err)
	}
	return id
}

// stepping is the way to a store of somebody who may die: step is called before
// each use, and tells whether it comes to that.
type stepping struct {
	keeper
	step func() (alive bool)
}

// Store stores sessions even when it is the last that is done: one that was
// retrieved, and is in no store when its last descriptor is closed, is gone, and
// nothing but haste can be done about that.
func (s stepping) Store(name string, f *fd.FD) error {
	if !s.step() && name != "index" && !strings.HasPrefix(name, "sessions-") && !strings.HasPrefix(name, "s-") {
		return nil
	}
	return s.keeper.Store(name, f)
}

func (s stepping) Remove(name string) error {
	if !s.step() {
		return nil
	}
	return s.keeper.Remove(name)
}

func (s stepping) Barrier() error {
	if !s.step() {
		return errDead
	}
	return nil
}

// errDead keeps one who is dead from going on where it would have an effect.
var errDead = errors.New("dead")

// fate is the end of a daemon before one of its steps: what it does to its
// store, and the sessions that it finishes.
type fate struct {
	mu    sync.Mutex
	left  int           // steps before the last; below 0 when it is reached
	die   func()        // called then
	died  chan struct{} // closed then
	alive bool
}

func newFate(steps int) *fate {
	return &fate{left: steps, die: func() {}, died: make(chan struct{}), alive: true}
}

// in puts the end off until after this many more steps.
func (f *fate) in(steps int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = steps
}

func (f *fate) step() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.alive {
		if f.left--; f.left < 0 {
			f.alive = false
			f.die()
			close(f.died)
		}
	}
	return f.alive
}

// finish is a Fail for the kernel that counts FINISH as a step.
func (f *fate) finish(req uint, _ string, _ uint64) error {
	if req == session.ReqFinish && !f.step() {
		return unix.EIO
	}
	return nil
}

// names returns the names of what is in a unit's store.
func (m *manager) names(unit string) []string {
	list := []string{}
	for _, p := range m.passed(unit) {
		list = append(list, p.Name)
		_ = p.FD.Close()
	}
	return list
}

// putMemfd stores one memfd, with flags of memfd_create(2), in the stores of
// several units; open for reading only if mode says so. Only its owner may use it.
func (m *manager) putMemfd(names []string, entry, contents string, mode, flags int) {
	m.t.Helper()
	raw, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|flags)
	if err != nil {
		m.t.Fatal(err)
	}
	f := fd.New(raw)
	defer func() { _ = f.Close() }()
	_, err = unix.Write(raw, []byte(contents))
	if err == nil {
		err = unix.Fchmod(raw, 0o600)
	}
	if err == nil && mode == unix.O_RDONLY {
		if raw, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			_ = f.Close()
			f = fd.New(raw)
		}
	}
	if err != nil {
		m.t.Fatal(err)
	}
	for _, unit := range names {
		if err := (keeper{m: m, unit: unit}).Store(entry, f); err != nil {
			m.t.Fatal(err)
		}
	}
}

// each calls tell with what is in a unit's store: its name, inode, mode and seals.
func (m *manager) each(unit string, tell func(name string, inode uint64, mode uint32, seals int)) {
	m.t.Helper()
	for _, p := range m.passed(unit) {
		st, err := p.FD.Stat()
		if err != nil {
			m.t.Fatal(err)
		}
		_ = p.FD.Do(func(raw int) error {
			seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0)
			tell(p.Name, st.Ino, st.Mode, seals)
			return err
		})
		_ = p.FD.Close()
	}
}
