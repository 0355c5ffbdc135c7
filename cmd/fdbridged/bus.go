// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/bus"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
)

// serveBus serves the message bus until it is told to stop. It asks the fdbridged
// that holds fds, whether that is there or not.
func serveBus(ctx context.Context) error {
	machine, err := bridge.Machine(os.DirFS("/"), kho.KernelLog)
	if err != nil {
		journal.Native("fdbridged").Warning("Not all of the kernel's live-update state can be read: %v", err)
	}
	service := bus.Service{
		Backend: bus.Local{Socket: wire.Path, Ctl: "/usr/bin/fdbridgectl"},
		Machine: machine,
	}
	return service.Serve(ctx, bus.Socket)
}
