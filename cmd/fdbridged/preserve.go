// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
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

// preserve runs in late shutdown, where the journal is not kept any more: what
// it has to say goes to the kernel log.
func preserve(ctx context.Context) error {
	log := journal.Kernel("fdbridge")
	preserved, err := preserveStores(ctx, log)
	if err != nil {
		return fmt.Errorf("no fd store will be carried into the next kernel: %w", err)
	}
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err == nil {
		err = socket.Ready(fmt.Sprintf("The stores of %d units are preserved.", len(preserved.Index.Units)))
	}
	if err != nil {
		return errors.Join(err, preserved.Close())
	}
	// The sessions last as long as this process: until the kexec, or until the
	// shutdown is called off and the service stopped.
	<-ctx.Done()
	log.Warning("The service was stopped before the kexec: no fd store will be carried into the next kernel.")
	return errors.Join(preserved.Close(), socket.Close())
}

func preserveStores(ctx context.Context, log *journal.Log) (*bridge.Preserved, error) {
	settings, problems := config.Load("/")
	for _, problem := range problems {
		log.Warning("%v", problem)
	}
	origin, err := kho.ReadOrigin(os.DirFS("/"), time.Now())
	if err != nil {
		return nil, err
	}
	preserver := bridge.Preserver{
		Stores:     &units.Reader{Socket: units.PrivateSocket},
		Duplicator: func() (bridge.Duplicator, error) { return units.OpenDuplicator(1) },
		Kernel:     session.System{},
		Device:     session.Path,
		Excluded:   settings.Excluded,
		Origin:     origin,
		Log:        log,
	}
	return preserver.Run(ctx)
}
