// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/notify"
)

// preserve waits until all services have stopped, where the journal is not kept any
// more: what it has to say goes to the kernel log. When it fails, the service manager
// calls the kexec off. Started before the shutdown begins, it prepares the live update.
func preserve(ctx context.Context) error {
	log := journal.Kernel("fdbridge")
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), bridge.MessageTimeout)
	if err != nil {
		return err
	}
	update, err := newUpdate(socket, log)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	preserved, err := update.Run(ctx)
	if err != nil {
		return notPreserved(ctx, err, log, socket)
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

// notPreserved is the end when nothing is preserved. Being told to stop is no failure.
func notPreserved(ctx context.Context, err error, log *journal.Log, socket *notify.Socket) error {
	if ctx.Err() != nil {
		return socket.Close()
	}
	if errors.Is(err, bridge.ErrUnprepared) {
		log.Err("%v", err)
	} else {
		log.Err("The live update is called off: %v", err)
	}
	return errors.Join(err, socket.Close())
}

func newUpdate(socket *notify.Socket, log *journal.Log) (*bridge.Update, error) {
	origin, err := kho.ReadOrigin(os.DirFS("/"), time.Now())
	if err != nil {
		return nil, err
	}
	stores := &units.Ahead{
		Reader: &units.Reader{Socket: units.PrivateSocket},
		Open:   func() (*units.Duplicator, error) { return units.OpenDuplicator(1) },
	}
	preserver := &bridge.Preserver{
		Stores:     stores,
		Duplicator: func() (bridge.Duplicator, error) { return stores.OpenDuplicator() },
		Kernel:     session.System{},
		Device:     session.Path,
		Rescue:     socket,
		Record:     func(index *kho.Index) error { return bridge.Record(bridge.RecordFile, index) },
		Origin:     origin,
		Log:        log,
		Warnings:   log.Recall(),
	}
	stores.Seen = preserver.Draft
	r := &rules{preserver: preserver, stores: stores, log: log}
	stores.Known = r.known
	return &bridge.Update{
		Preserver: preserver, Ahead: stores, Reload: r.reload, Wait: waitFor(stores.Reader, socket),
		Manager: socket, Stop: stopSelf, Exit: func() { os.Exit(1) }, DropIn: bridge.PreparedDropIn, Log: log,
	}, nil
}

// waitFor returns what an Update waits with.
func waitFor(reader *units.Reader, socket *notify.Socket) func(context.Context, time.Duration, func(context.Context)) error {
	return func(ctx context.Context, within time.Duration, meanwhile func(context.Context)) error {
		shutdown := units.Shutdown{Reader: reader, Root: units.CgroupRoot, Within: within, Meanwhile: meanwhile}
		return shutdown.Wait(ctx, func() error { return socket.ExtendTimeout(bridge.StopTimeout) })
	}
}

// stopSelf asks the service manager to stop this service.
func stopSelf(ctx context.Context) error {
	manager, err := units.Connect(ctx, units.PrivateSocket)
	if err != nil {
		return err
	}
	return errors.Join(manager.Stop(ctx, bridge.PreserveUnit), manager.Close())
}

// rules are those that an Update goes by.
type rules struct {
	config.Rules
	preserver *bridge.Preserver
	stores    *units.Ahead // the preserver's
	log       *journal.Log
}

func (r *rules) reload() bridge.Limits {
	found, problems := config.LoadRules("/")
	for _, problem := range problems {
		r.log.Warning("%v", problem)
	}
	r.Rules = *found
	r.stores.Excluded = found.Excluded
	r.preserver.Excluded, r.preserver.Required, r.preserver.Early = found.Excluded, found.Required, found.Early
	r.preserver.Partly = !found.AnyRequired()
	return bridge.Limits{Prepare: found.PrepareTimeout, Preserve: found.PreserveTimeout, Masked: found.Register.Masked()}
}

// known fills in what the generator has found in a unit's files, if that is what
// PID 1 has made of them: a delivery compares it with what PID 1 says then.
func (r *rules) known(s *units.Store) bool {
	facts, ok := r.Register.Lookup(s.Unit)
	if ok = ok && r.Loaded && !facts.Unclear; ok {
		s.FragmentPath, s.User, s.Group = facts.Fragment, facts.User, facts.Group
	}
	return ok
}
