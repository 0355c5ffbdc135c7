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
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/notify"
)

// sealTimeout is what preserving may take beyond PreserveTimeoutSec=, after
// which nothing new is begun: a system call or two, and the index.
const sealTimeout = 30 * time.Second

// preserve runs in late shutdown, where the journal is not kept any more: what
// it has to say goes to the kernel log. When it fails, the service manager calls
// the kexec off.
func preserve(ctx context.Context) error {
	log := journal.Kernel("fdbridge")
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	settings, problems := config.Load("/")
	for _, problem := range problems {
		log.Warning("%v", problem)
	}
	if err := socket.ExtendTimeout(settings.PreserveTimeout + sealTimeout); err != nil {
		return errors.Join(err, socket.Close())
	}
	preserved, err := preserveStores(ctx, settings, socket, log)
	if err != nil {
		log.Err("The live update is called off: %v", err)
		return errors.Join(err, socket.Close())
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

// preserveStores preserves, and fails only when the live update is to be called
// off.
func preserveStores(ctx context.Context, settings *config.Config, socket *notify.Socket, log *journal.Log) (*bridge.Preserved, error) {
	ctx, stop := context.WithTimeoutCause(ctx, settings.PreserveTimeout,
		fmt.Errorf("it has taken longer than PreserveTimeoutSec=%v", settings.PreserveTimeout))
	defer stop()
	register, err := generator.ReadRegister(generator.Dir)
	if err != nil {
		log.Warning("PID 1 is asked instead, which takes longer: %v", err)
	}
	rules := rules{settings, register}
	preserver := bridge.Preserver{
		Stores:     &units.Reader{Socket: units.PrivateSocket, Known: rules.known},
		Duplicator: func() (bridge.Duplicator, error) { return units.OpenDuplicator(1) },
		Kernel:     session.System{},
		Device:     session.Path,
		Excluded:   rules.excluded,
		Required:   rules.required,
		Rescue:     socket,
		Log:        log,
	}
	if preserver.Origin, err = kho.ReadOrigin(os.DirFS("/"), time.Now()); err != nil {
		return nil, err
	}
	preserved, err := preserver.Run(ctx)
	if err != nil && !rules.anyRequired() {
		log.Err("No fd store will be carried into the next kernel: %v", err)
		return &bridge.Preserved{}, nil
	}
	return preserved, err
}

// rules are what fdbridge.conf and the units' files say of the units.
type rules struct {
	settings *config.Config
	register generator.Register
}

// known fills in what the generator has found in a unit's files.
func (r rules) known(s *units.Store) bool {
	facts, ok := r.register.Lookup(s.Unit)
	if ok {
		s.FragmentPath, s.User, s.Group = facts.Fragment, facts.User, facts.Group
	}
	return ok
}

func (r rules) excluded(unit string) bool {
	facts, _ := r.register.Lookup(unit)
	return facts.Left || r.settings.Excluded(unit)
}

func (r rules) required(unit string) bool {
	facts, _ := r.register.Lookup(unit)
	return facts.Required || r.settings.Rollback
}

// anyRequired tells whether there is any unit whose loss would call the live
// update off.
func (r rules) anyRequired() bool {
	for _, facts := range r.register {
		if facts.Required {
			return true
		}
	}
	return r.settings.Rollback
}
