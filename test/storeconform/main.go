// SPDX-License-Identifier: Apache-2.0

// Command storeconform runs the conformance suite of package storetest against
// PID 1, as the process of the unit that it is told.
package main

import (
	"fmt"
	"os"

	"github.com/fdbridge/fdbridge/bridge/storetest"
	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/notify"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: storeconform UNIT")
		os.Exit(2)
	}
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	conform.Main(storetest.Subject{
		Unit: os.Args[1], Keeper: socket, PID1: &units.Reader{Socket: units.PrivateSocket}, Kernel: session.System{},
		Duplicator: func() (storetest.Duplicator, error) { return units.OpenDuplicator(1) },
	}, storetest.Checks())
}
