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
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), bridge.PreserveMessageTimeout)
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
	shutdown := units.Shutdown{
		Reader: stores.Reader, Root: units.CgroupRoot,
		Alive: func() error { return socket.ExtendTimeout(bridge.AliveTimeout) },
	}
	reload := func() *config.Rules {
		rules, problems := config.LoadRules("/")
		for _, problem := range problems {
			log.Warning("%v", problem)
		}
		stores.Excluded = rules.Excluded
		stores.Known = func(s *units.Store) bool {
			facts, loaded := rules.Facts(s.Unit)
			if loaded {
				s.FragmentPath, s.User, s.Group = facts.Fragment, facts.User, facts.Group
			}
			return loaded
		}
		return rules
	}
	return &bridge.Update{
		Preserver: preserver, Ahead: stores, Reload: reload, Wait: shutdown.Wait,
		Manager: socket, Stop: stopSelf, Exit: func() { os.Exit(1) }, DropIn: bridge.PreparedDropIn, Log: log,
	}, nil
}

// stopSelf asks the service manager to stop this service.
func stopSelf(ctx context.Context) error {
	manager, err := units.Connect(ctx, units.PrivateSocket)
	if err != nil {
		return err
	}
	return errors.Join(manager.Stop(ctx, bridge.PreserveUnit), manager.Close())
}
