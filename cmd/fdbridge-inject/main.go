// SPDX-License-Identifier: Apache-2.0

// Command fdbridge-inject puts the fds that were carried through a live update
// into the fd store of the unit that it runs for, as ExecStartPre=-+ of that
// unit. It ends without a word when there are none. Its arguments are the names in
// LUOSession= of the unit, whose sessions it puts there, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// timeout bounds the whole, below the 90 s after which systemd lets a unit fail that
// has not started: by default, and when TimeoutStartSec= is shorter, because it is asked
// to wait that long. The unit is to start without its fds then. It is reached only when
// the service manager takes in no messages. A unit that has to wait for its turn has as
// much again each time that it is told to.
const timeout = 85 * time.Second

// endSignals are what KillSignal= and RestartKillSignal= of a unit are usually set to,
// and SIGHUP, which SendSIGHUP= sends besides. A signal that is not taken would end the
// process in the middle of a delivery, or not at all.
var endSignals = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGWINCH, unix.SIGPWR,
}

func main() {
	log := journal.Stderr()
	bound := time.AfterFunc(timeout, func() {
		log.Err("The unit's fds were not delivered within %v; the service manager may get some of them yet, and all are held on", timeout)
		os.Exit(1)
	})
	// A unit that is stopped while it starts is to keep none or all of its fds.
	ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
	defer stop()
	if err := run(ctx, log, bound); err != nil {
		log.Err("Not all of the unit's fds were delivered: %v", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *journal.Log, bound *time.Timer) error {
	store, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	max, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil {
		return fmt.Errorf("the unit has no fd store, as FDSTORE=%q says", os.Getenv("FDSTORE"))
	}
	extend := func() {
		if err := store.ExtendTimeout(deliver.StartTimeout); err != nil {
			log.Warning("The unit may be stopped before it gets its fds: %v", err)
		}
	}
	extend()
	deliverer := deliver.Deliverer{
		Socket: wire.Path, Kernel: session.System{}, Store: store, Max: max,
		Invocation: os.Getenv("INVOCATION_ID"),
		Lost:       func(name string, err error) { log.Err("The fd %q is lost: %v", name, err) },
		Waits: func() {
			bound.Reset(timeout)
			extend()
			bound.Reset(timeout)
		},
	}
	came, failed := deliverer.Sessions(ctx, os.Args[1:])
	n, err := deliverer.Run(ctx)
	if n += len(came); n > 0 {
		log.Info("Delivered %d fds to the unit's fd store.", n)
	}
	return errors.Join(failed, err, deliverer.Done(ctx, came))
}
