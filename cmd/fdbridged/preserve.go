// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/notify"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// sealTimeout is what preserving may take beyond PreserveTimeoutSec=, after
// which nothing new is begun: a system call or two, and the index, or a question
// to PID 1 about what is lost.
const sealTimeout = 30 * time.Second

// messageTimeout bounds how long the service manager may take to take in a message, while
// services are away.
const messageTimeout = 80 * time.Second

// stopTimeout is what the service manager is to grant each time that it says that
// services still stop, which is every 20 s or so.
const stopTimeout = 90 * time.Second

// preserve waits until all services have stopped, where the journal is not kept any
// more: what it has to say goes to the kernel log. When it fails, the service manager
// calls the kexec off. Started before the shutdown begins, it prepares the live update.
func preserve(ctx context.Context) error {
	log := journal.Kernel("fdbridge")
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), messageTimeout)
	if err != nil {
		return err
	}
	update, err := newUpdate(socket, log)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	var preserved *bridge.Preserved
	if err = update.await(ctx); err == nil {
		preserved, err = update.preserve(ctx)
	}
	update.stores.Close()
	if err != nil {
		return notPreserved(ctx, errors.Join(err, update.preserver.Abandon()), log, socket)
	}
	if err := socket.Ready(preserved.Summary()); err != nil {
		return errors.Join(err, preserved.Close(), socket.Close())
	}
	// The sessions last as long as this process: until the kexec, or until the
	// shutdown is called off and the service stopped.
	<-ctx.Done()
	log.Warning("The service was stopped before the kexec: no fd store will be carried into the next kernel.")
	return errors.Join(preserved.Close(), socket.Close())
}

// update is one live update, from its preparation or its shutdown on.
type update struct {
	preserver *bridge.Preserver
	stores    *units.Ahead  // the preserver's
	rules     *config.Rules // those that the preserver goes by
	socket    *notify.Socket
	log       *journal.Log
}

// await waits until all services have stopped. If no shutdown has begun yet it
// prepares one, and has the service stopped when none begins in time.
func (u *update) await(ctx context.Context) error {
	shutdown := units.Shutdown{
		Reader: u.stores.Reader, Root: units.CgroupRoot,
		Meanwhile: func(ctx context.Context) { // what this does not find out is asked when all have stopped
			_ = u.stores.Look(ctx)
		},
	}
	defer func() { _ = os.Remove(startingDropIn) }() // it does no harm
	alive := func() error { return u.socket.ExtendTimeout(stopTimeout) }
	err := shutdown.Wait(ctx, alive)
	if !errors.Is(err, units.ErrNoShutdown) {
		return err
	}
	if err := u.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		begun := shutdown.Wait(ctx, alive)
		if errors.Is(begun, units.ErrNoShutdown) {
			return err
		}
		u.log.Warning("%v", err)
		return begun // meanwhile, and all can be done then
	}
	look, reload := shutdown.Meanwhile, sync.OnceFunc(u.reload)
	shutdown.Meanwhile = func(ctx context.Context) { reload(); look(ctx) }
	shutdown.Within = u.rules.PrepareTimeout
	err = shutdown.Wait(ctx, alive)
	if errors.Is(err, units.ErrNoShutdown) {
		u.log.Warning("Nothing was made of what was prepared within PrepareTimeoutSec=%v: it is undone.", u.rules.PrepareTimeout)
		err = errors.Join(u.preserver.Abandon(), end(ctx, &shutdown, alive))
	}
	if err == nil {
		reload() // if it was too short to do anything meanwhile
	}
	return err
}

// prepare prepares a live update.
func (u *update) prepare(ctx context.Context) error {
	u.stores.Close() // of stores that may change until the shutdown
	// Preserving a terabyte takes more than TimeoutStartSec=.
	if err := u.socket.ExtendTimeout(sum(u.rules.PrepareTimeout, stopTimeout)); err != nil {
		return err
	}
	if err := outlastReloads(); err != nil {
		u.log.Warning("systemctl daemon-reload will undo what is prepared: %v", err)
	}
	prepared, err := u.preserver.Prepare(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnprepared, err)
	}
	u.log.Info("%s", prepared.Summary())
	return u.socket.Status(prepared.Summary())
}

// errUnprepared says that no live update was under way, and that none is prepared.
var errUnprepared = errors.New("nothing is prepared")

// sum is that of two times, of which the first can be without end, which is the
// greatest number that there is.
func sum(long, more time.Duration) time.Duration { return min(long, unitfile.Infinity-more) + more }

// startingDropIn is a drop-in of this service as long as something is prepared.
const startingDropIn = "/run/systemd/system/" + bridge.PreserveUnit + ".d/zz-prepared.conf"

// outlastReloads keeps a daemon-reload from ending this service, which is still being
// started: then the service manager forgets by how much it has extended TimeoutStartSec=
// (service_coldplug_timeout in src/core/service.c, systemd 257). It reads the drop-in
// when it matters.
func outlastReloads() error {
	const text = "# Written by fdbridged, while something is prepared.\n[Service]\nTimeoutStartSec=infinity\n"
	err := os.MkdirAll(filepath.Dir(startingDropIn), 0o755)
	if err == nil {
		err = os.WriteFile(startingDropIn, []byte(text), 0o644)
	}
	return err
}

// end has the service manager stop this service, which ends ctx. A shutdown that begins before
// that takes the place of the stop, or has it refused: then all is done as if nothing had been
// prepared, and end returns when services have stopped.
func end(ctx context.Context, shutdown *units.Shutdown, alive func() error) error {
	failed := stopSelf(ctx)
	shutdown.Within = endTimeout
	err := shutdown.Wait(ctx, alive)
	if errors.Is(err, units.ErrNoShutdown) {
		return errors.Join(fmt.Errorf("%w: the service manager does not stop %s", errUnprepared, bridge.PreserveUnit), failed)
	}
	return err
}

// stopSelf asks the service manager to stop this service.
func stopSelf(ctx context.Context) error {
	manager, err := units.Connect(ctx, units.PrivateSocket)
	if err != nil {
		return err
	}
	return errors.Join(manager.Stop(ctx, bridge.PreserveUnit), manager.Close())
}

// notPreserved is the end when nothing is preserved. Being told to stop is no failure.
func notPreserved(ctx context.Context, err error, log *journal.Log, socket *notify.Socket) error {
	if ctx.Err() != nil {
		return socket.Close()
	}
	if errors.Is(err, errUnprepared) {
		log.Err("%v", err)
	} else {
		log.Err("The live update is called off: %v", err)
	}
	return errors.Join(err, socket.Close())
}

// preserve preserves, and fails only when the live update is to be called off.
func (u *update) preserve(ctx context.Context) (*bridge.Preserved, error) {
	if u.rules.Register.Masked() { // which reload has said
		return &bridge.Preserved{}, u.preserver.Abandon()
	}
	bound := sum(u.rules.PreserveTimeout, sealTimeout)
	if err := u.socket.ExtendTimeout(bound); err != nil {
		return nil, err
	}
	// The service manager has no bound of its own any more when it was reloaded while
	// something was prepared: see outlastReloads.
	late := time.AfterFunc(bound, func() {
		u.log.Err("The live update is called off: preserving has not come to an end within %v.", bound)
		os.Exit(1)
	})
	defer late.Stop()
	u.preserver.Sealed = func(left time.Duration) error {
		late.Stop()
		if left == 0 {
			return nil
		}
		return u.socket.ExtendTimeout(left + 2*messageTimeout) // with what it has to be told after that
	}
	limited, stop := context.WithTimeoutCause(ctx, u.rules.PreserveTimeout,
		fmt.Errorf("it has taken longer than PreserveTimeoutSec=%v", u.rules.PreserveTimeout))
	defer stop()
	preserved, err := u.preserver.Run(limited)
	if err != nil && u.preserver.Partly {
		u.stores.Close() // what was seen may be why
		u.preserver.GiveUp(ctx, err)
		return &bridge.Preserved{}, nil
	}
	return preserved, err
}

func newUpdate(socket *notify.Socket, log *journal.Log) (*update, error) {
	origin, err := kho.ReadOrigin(os.DirFS("/"), time.Now())
	if err != nil {
		return nil, err
	}
	u := &update{rules: &config.Rules{}, socket: socket, log: log}
	u.stores = &units.Ahead{
		Reader: &units.Reader{Socket: units.PrivateSocket},
		Open:   func() (*units.Duplicator, error) { return units.OpenDuplicator(1) },
	}
	u.stores.Known = u.known
	u.preserver = &bridge.Preserver{
		Stores:     u.stores,
		Duplicator: func() (bridge.Duplicator, error) { return u.stores.OpenDuplicator() },
		Kernel:     session.System{},
		Device:     session.Path,
		Rescue:     socket,
		Record:     func(index *kho.Index) error { return bridge.Record(bridge.RecordFile, index) },
		Origin:     origin,
		Log:        log,
		Warnings:   log.Recall(),
	}
	u.stores.Seen = u.preserver.Draft
	u.reload()
	return u, nil
}

// reload reads the rules, which may change as long as services run.
func (u *update) reload() {
	found, problems := config.LoadRules("/")
	for _, problem := range problems {
		u.log.Warning("%v", problem)
	}
	*u.rules = *found
	u.stores.Excluded = found.Excluded
	u.preserver.Excluded, u.preserver.Required, u.preserver.Early = found.Excluded, found.Required, found.Early
	u.preserver.Partly = !found.AnyRequired()
}

// known fills in what the generator has found in a unit's files, if that is what
// PID 1 has made of them: a delivery compares it with what PID 1 says then.
func (u *update) known(s *units.Store) bool {
	facts, ok := u.rules.Register.Lookup(s.Unit)
	if ok = ok && u.rules.Loaded && !facts.Unclear; ok {
		s.FragmentPath, s.User, s.Group = facts.Fragment, facts.User, facts.Group
	}
	return ok
}
