// SPDX-License-Identifier: Apache-2.0

// Command fdbridge-inject puts the fds that were carried through a live update
// into the fd store of the unit that it runs for, as ExecStartPre=-+ of that
// unit. It says nothing unless something goes wrong: its output may be a file of the unit's,
// and fdbridged logs what was delivered. Its arguments are the names in
// LUOSession= of the unit, whose sessions it puts there, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// endSignals are what KillSignal= and RestartKillSignal= of a unit are usually set to,
// and SIGHUP, which SendSIGHUP= sends besides. A signal that is not taken would end the
// process in the middle of a delivery, or not at all.
var endSignals = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGWINCH, unix.SIGPWR,
}

func main() {
	log := journal.Stderr()
	// A unit that is stopped while it starts is to keep none or all of its fds.
	ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
	defer stop()
	if err := run(ctx, log); err != nil {
		log.Err("Not all of the unit's fds were delivered: %v", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *journal.Log) error {
	store, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err != nil {
		return err
	}
	max, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil {
		return fmt.Errorf("the unit has no fd store, as FDSTORE=%q says", os.Getenv("FDSTORE"))
	}
	deliverer := deliver.Deliverer{
		Socket: wire.Path, Kernel: session.System{}, Store: store, Max: max,
		Invocation: os.Getenv("INVOCATION_ID"),
		Lost:       func(name string, err error) { log.Err("The fd %q is lost: %v", name, err) },
		Altered: func(name string, err error) {
			log.Warning("The fd %q has another owner or mode than before the live update: %v", name, err)
		},
	}
	came, failed := deliverer.Sessions(ctx, os.Args[1:])
	_, err = deliverer.Run(ctx) // fdbridged logs how many there were
	return errors.Join(failed, err, deliverer.Done(ctx, came))
}
