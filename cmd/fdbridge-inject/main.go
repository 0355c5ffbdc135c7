// SPDX-License-Identifier: Apache-2.0

// Command fdbridge-inject puts the fds that were carried through a live update
// into the fd store of the unit that it runs for, as ExecStartPre=-+ of that
// unit. It ends without a word when there are none.
package main

import (
	"os"
	"strconv"
	"time"

	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// timeout bounds the whole, below the 90 s after which systemd by default lets a
// unit fail that has not started: it is to start without its fds then.
const timeout = 75 * time.Second

func main() {
	log := journal.Stderr()
	time.AfterFunc(timeout, func() {
		log.Err("The unit's fds were not all delivered within %v; the others are held on", timeout)
		os.Exit(1)
	})
	store, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		log.Err("The unit's fds cannot be delivered and are held on: %v", err)
		os.Exit(1)
	}
	max, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil {
		log.Err("The unit's fds cannot be delivered and are held on: it has no fd store, as FDSTORE=%q says", os.Getenv("FDSTORE"))
		os.Exit(1)
	}
	deliverer := deliver.Deliverer{Socket: wire.Path, Kernel: session.System{}, Store: store, Max: max}
	n, err := deliverer.Run()
	if err != nil {
		log.Err("Not all of the unit's fds were delivered: %v", err)
		os.Exit(1)
	}
	if n > 0 {
		log.Info("Delivered %d fds to the unit's fd store.", n)
	}
}
