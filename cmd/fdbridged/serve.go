// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/notify"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// serve restores what was handed over, then serves the units until it is told
// to stop. What is held survives its end, in its unit's fd store.
func serve(ctx context.Context) error {
	log := journal.Native("fdbridged")
	traceToKernelLog()
	settings, problems := config.Load("/")
	for _, problem := range problems {
		log.Warning("%v", problem)
	}
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }() // all that matters was waited for
	passed, err := notify.Listen()
	if err != nil {
		return err
	}
	// Who comes early waits in the queue.
	sockets, err := listen()
	if err != nil {
		return err
	}
	reader := &units.Reader{Socket: units.PrivateSocket}
	holder := newHolder(socket, reader, log)
	holder.Restore(ctx, passed)
	defer func() { _ = holder.Close() }() // the fd store has all that is held
	addDropIns(ctx, settings, holder)
	rules := current(settings)
	pinner := newPinner(rules, reader, log)
	server := newServer(rules, holder, reader, log)
	server.Started = pinner.Notice
	if err := server.Begin(ctx); err != nil {
		log.Warning("Units will start more slowly: %v", err)
	}
	if err := socket.Ready(statusLine(holder)); err != nil {
		return errors.Join(err, sockets.close())
	}
	err = run(ctx, server, pinner, sockets, settings, log)
	if left := holder.Keeper.Barrier(); left != nil { // as what PID 1 has not read may be lost with this process
		log.Warning("What is not needed any more may stay in fdbridged's store: %v", left)
	}
	return err
}

// sockets are where fdbridged listens: for root, and for services.
type sockets struct{ root, services *wire.Listener }

func listen() (*sockets, error) {
	root, err := wire.Listen(wire.Path)
	if err != nil {
		return nil, err
	}
	services, err := wire.ListenToAll(wire.SessionsPath)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &sockets{root, services}, nil
}

func (s *sockets) close() error { return errors.Join(s.root.Close(), s.services.Close()) }

// run serves the sockets, pins units, and goes on to restore what could not be
// restored at once, until ctx ends.
func run(ctx context.Context, server *bridge.Server, pinner *bridge.Pinner, sockets *sockets, settings *config.Config, log *journal.Log) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // also when serving fails: the service is started again
	watcher, err := units.NewWatcher("")
	if err != nil {
		log.Err("Transient units may lose their fd store when they stop: %v", err)
	} else {
		running.Go(func() { pinner.Follow(watcher) })
	}
	running.Go(func() { pinner.Run(ctx) })
	running.Go(func() { server.Expire(ctx, settings.HoldTimeout) })
	running.Go(func() {
		if server.Holder.Retry(ctx) {
			addDropIns(ctx, settings, server.Holder)
			if err := startArrival(ctx); err != nil {
				log.Warning("The next boot may say that the last live update has not arrived: %v", err)
			}
		}
	})
	context.AfterFunc(ctx, func() {
		_ = sockets.close()
		if watcher != nil {
			_ = watcher.Close()
		}
	})
	running.Go(func() {
		if err := server.ServeSessions(ctx, sockets.services); err != nil {
			log.Err("Services cannot have sessions of their own any more: %v", err)
		}
	})
	err = server.Serve(ctx, sockets.root)
	if ctx.Err() == nil {
		return err // as when it has crashed: whoever asks waits for the next one
	}
	// Not before deliveries have ended: who was hung up on would not wait that long.
	if gone := errors.Join(sockets.root.Remove(), sockets.services.Remove()); gone != nil {
		log.Warning("Units that start now will wait for a fdbridged for a while: %v", gone)
	}
	return err
}

func newHolder(socket *notify.Socket, reader *units.Reader, log *journal.Log) *bridge.Holder {
	holder := &bridge.Holder{
		Kernel: session.System{}, Device: session.Path,
		Rescued: func(ctx context.Context) ([]notify.Passed, func() error, error) {
			if err := preserveEnded(ctx, reader); err != nil {
				log.Warning("Services may find that what they have stored cannot be changed yet: %v", err)
			}
			return reader.TakeStore(ctx, bridge.PreserveUnit)
		},
		Log: log,
	}
	holder.Keeper = &notify.Backlog{Socket: socket, Failed: func(err error) { holder.Remains(err) }}
	return holder
}

// preserveEnded waits until a preserve service that was ready has ended, as when the
// kexec has failed and the machine goes on: until then what it has preserved cannot be
// changed, and its store not emptied. No order of the units does it, as that would have
// preserving wait, too. One that only prepares is not waited for.
func preserveEnded(ctx context.Context, reader *units.Reader) error {
	return reader.Follow(ctx, bridge.PreserveUnit, bridge.PreserveEndTimeout, func(s units.Service) bool {
		return s.Active != "active" && s.Active != "deactivating"
	})
}

func newPinner(rules *config.Current, reader *units.Reader, log *journal.Log) *bridge.Pinner {
	pinner := bridge.NewPinner()
	pinner.OptedIn = reader.OptedIn
	pinner.Pin = pin
	pinner.Covered = func() (map[string]bool, error) { return generator.Covered(generator.Dir) }
	pinner.Excluded = rules.Excluded
	pinner.Log = log
	return pinner
}

// pin pins units on a connection to PID 1 of its own.
func pin(ctx context.Context, names []string) error {
	manager, err := units.Connect(ctx, units.PrivateSocket)
	if err != nil {
		return err
	}
	return errors.Join(manager.Pin(ctx, units.RuntimeDir, names), manager.Close())
}

func newServer(rules *config.Current, holder *bridge.Holder, reader *units.Reader, log *journal.Log) *bridge.Server {
	machine, err := bridge.Machine(os.DirFS("/"), kho.KernelLog)
	if err != nil {
		log.Warning("Not all of the kernel's live-update state can be read: %v", err)
	}
	server := bridge.NewServer()
	server.Holder = holder
	server.PID1 = reader
	server.UnitOf = units.UnitOf
	server.StartsDir = units.StartsDir
	server.Duplicator = func() (bridge.Duplicator, error) { return units.OpenDuplicator(1) }
	server.Facts = rules.Facts
	server.Excluded = rules.Excluded
	server.LostFile = bridge.LostFile
	server.WaitInterval = wire.WaitInterval
	server.Machine = machine
	server.Log = log
	return server
}

// current tells what fdbridge.conf and the units' files say.
func current(settings *config.Config) *config.Current {
	return &config.Current{Config: settings, Current: generator.Current{Options: options(settings, unitfile.SearchPath)}}
}

func options(settings *config.Config, path func(env string, set bool) []string) generator.Options {
	return generator.Options{
		Root: "/", Dir: generator.Dir, Path: path(os.LookupEnv("SYSTEMD_UNIT_PATH")),
		Exclude: func() (func(unit string) bool, []error) { return settings.Excluded, nil },
	}
}

// addDropIns lets units have their fds that the generator could not know.
func addDropIns(ctx context.Context, settings *config.Config, holder *bridge.Holder) {
	dropIns, failed := generator.ForHeld(options(settings, unitfile.LoadedPath), holder.Units())
	added, err := bridge.AddDropIns(units.RuntimeDir, dropIns)
	if added > 0 {
		manager, failed := units.Connect(ctx, units.PrivateSocket)
		if failed == nil {
			failed = errors.Join(manager.Refresh(ctx), manager.Close())
		}
		err = errors.Join(err, failed)
	}
	if err = errors.Join(append(failed, err)...); err != nil {
		holder.Problem(journal.About{}, "Not every unit that fds are held for will get them when it starts: %v", err)
	}
}

// startArrival has it noted that the last live update has arrived after all.
func startArrival(ctx context.Context) error {
	manager, err := units.Connect(ctx, units.PrivateSocket)
	if err != nil {
		return err
	}
	return errors.Join(manager.Start(ctx, bridge.ArrivalUnit), manager.Close())
}

// traceToKernelLog keeps what the runtime says of a crash, as this service has
// no standard error: systemd would order it after the journal's socket.
func traceToKernelLog() {
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return // then a crash is seen by its exit status alone
	}
	_ = debug.SetCrashOutput(kmsg, debug.CrashOptions{})
	_ = kmsg.Close() // there is a duplicate now
}

func statusLine(holder *bridge.Holder) string {
	switch units, sessions := len(holder.Units()), len(holder.OwnSessions()); {
	case units == 0 && sessions > 0:
		return fmt.Sprintf("Holding %d sessions of services.", sessions)
	case sessions > 0:
		return fmt.Sprintf("Holding the fds of %d units, and %d sessions of services.", units, sessions)
	case units > 0:
		return fmt.Sprintf("Holding the fds of %d units.", units)
	}
	return "Holding nothing."
}
