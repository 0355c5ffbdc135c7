// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
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
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }() // all that matters was waited for
	passed, err := notify.Listen()
	if err != nil {
		return err
	}
	holder := &bridge.Holder{Kernel: session.System{}, Device: session.Path, Keeper: socket, Log: log}
	holder.Restore(ctx, passed)
	defer func() { _ = holder.Close() }() // the fd store has them all
	listener, err := wire.Listen(wire.Path)
	if err != nil {
		return err
	}
	line := &bridge.Line{Socket: units.PrivateSocket}
	defer func() { _ = line.Close() }() // it was only asked
	addDropIns(ctx, holder, line)
	server := newServer(settings, holder, line, log)
	if err := server.Begin(ctx); err != nil {
		log.Warning("Units will start more slowly: %v", err)
	}
	if err := socket.Ready(statusLine(holder)); err != nil {
		return errors.Join(err, listener.Close())
	}
	pinner := bridge.Pinner{
		PID1:     func(ctx context.Context) (bridge.PinManager, error) { return line.Manager(ctx) },
		Covered:  func() (map[string]bool, error) { return generator.Covered(generator.Dir) },
		Excluded: settings.Excluded,
		Log:      log,
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { pinner.Run(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	return server.Serve(ctx, listener)
}

func newServer(settings *config.Config, holder *bridge.Holder, line *bridge.Line, log *journal.Log) *bridge.Server {
	machine, err := bridge.Machine(os.DirFS("/"), kho.KernelLog)
	if err != nil {
		log.Warning("Not all of the kernel's live-update state can be read: %v", err)
	}
	return &bridge.Server{
		Holder:   holder,
		PID1:     func(ctx context.Context) (bridge.PID1, error) { return line.Manager(ctx) },
		UnitOf:   units.UnitOf,
		Excluded: settings.Excluded,
		Machine:  machine,
		Log:      log,
	}
}

// addDropIns lets units have their fds that the generator could not know.
func addDropIns(ctx context.Context, holder *bridge.Holder, line *bridge.Line) {
	covered, err := generator.Covered(generator.Dir)
	unknown := slices.DeleteFunc(holder.Units(), func(unit string) bool {
		return covered[unit] || generator.HasDropIn(generator.Dir, unit)
	})
	added, failed := bridge.AddDropIns(units.RuntimeDir, unknown, generator.DropIn(""))
	if err = errors.Join(err, failed); added > 0 {
		manager, failed := line.Manager(ctx)
		if failed == nil {
			failed = manager.Refresh(ctx)
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		holder.Problem("Not every unit that fds are held for will get them when it starts: %v", err)
	}
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
	if n := len(holder.Units()); n > 0 {
		return fmt.Sprintf("Holding the fds of %d units.", n)
	}
	return "Holding nothing."
}
