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
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// sealTimeout is what preserving may take beyond PreserveTimeoutSec=, after
// which nothing new is begun: a system call or two, and the index, or a question
// to PID 1 about what is lost.
const sealTimeout = 30 * time.Second

// stopTimeout is what the service manager is to grant each time that it says that
// services still stop, which is every 20 s or so.
const stopTimeout = 90 * time.Second

// preserve waits until all services have stopped, where the journal is not kept any
// more: what it has to say goes to the kernel log. When it fails, the service manager
// calls the kexec off.
func preserve(ctx context.Context) error {
	log := journal.Kernel("fdbridge")
	warnings := log.Recall()
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	rules, problems := config.LoadRules("/")
	for _, problem := range problems {
		log.Warning("%v", problem)
	}
	shutdown := units.Shutdown{Reader: &units.Reader{Socket: units.PrivateSocket}, Root: units.CgroupRoot}
	err = shutdown.Wait(ctx, func() error { return socket.ExtendTimeout(stopTimeout) })
	if err != nil {
		return notPreserved(ctx, err, log, socket)
	}
	// PreserveTimeoutSec=infinity is the greatest number that there is.
	if err := socket.ExtendTimeout(min(rules.PreserveTimeout, unitfile.Infinity-sealTimeout) + sealTimeout); err != nil {
		return errors.Join(err, socket.Close())
	}
	preserved, err := preserveStores(ctx, rules, socket, log, warnings)
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
	log.Err("The live update is called off: %v", err)
	return errors.Join(err, socket.Close())
}

// preserveStores preserves, and fails only when the live update is to be called
// off.
func preserveStores(ctx context.Context, rules *config.Rules, socket *notify.Socket, log *journal.Log, warnings func() []string) (*bridge.Preserved, error) {
	limited, stop := context.WithTimeoutCause(ctx, rules.PreserveTimeout,
		fmt.Errorf("it has taken longer than PreserveTimeoutSec=%v", rules.PreserveTimeout))
	defer stop()
	preserver := bridge.Preserver{
		Stores:     &units.Reader{Socket: units.PrivateSocket, Known: known(rules)},
		Duplicator: func() (bridge.Duplicator, error) { return units.OpenDuplicator(1) },
		Kernel:     session.System{},
		Device:     session.Path,
		Excluded:   rules.Excluded,
		Required:   rules.Required,
		Partly:     !rules.AnyRequired(),
		Rescue:     socket,
		Record:     func(index *kho.Index) error { return bridge.Record(bridge.RecordFile, index) },
		Log:        log,
		Warnings:   warnings,
	}
	var err error
	if preserver.Origin, err = kho.ReadOrigin(os.DirFS("/"), time.Now()); err != nil {
		return nil, err
	}
	preserved, err := preserver.Run(limited)
	if err != nil && preserver.Partly {
		preserver.GiveUp(ctx, err)
		return &bridge.Preserved{}, nil
	}
	return preserved, err
}

// known fills in what the generator has found in a unit's files, if that is what
// PID 1 has made of them: a delivery compares it with what PID 1 says then.
func known(rules *config.Rules) func(s *units.Store) bool {
	return func(s *units.Store) bool {
		facts, ok := rules.Register.Lookup(s.Unit)
		if ok = ok && rules.Loaded && !facts.Unclear; ok {
			s.FragmentPath, s.User, s.Group = facts.Fragment, facts.User, facts.Group
		}
		return ok
	}
}
