// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

// arrival reports what was lost with a live update that did not arrive.
func arrival() error {
	origin, err := kho.ReadOrigin(os.DirFS("/"), time.Now())
	if err != nil {
		return err
	}
	a := bridge.Arrival{
		Record: bridge.RecordFile, Lost: bridge.LostFile, BootID: origin.BootID,
		Handover: handover, Log: journal.Native("fdbridged"),
	}
	err = a.Review()
	if errors.Is(err, bridge.ErrUnsettled) { // fdbridged starts this again when it is
		a.Log.Warning("%v", err)
		return nil
	}
	return err
}

// handover asks fdbridged. A kernel without live update has taken nothing over.
func handover() (found *wire.Handover, err error) {
	if _, err := os.Stat(session.Path); errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	unknown := ""
	err = wire.Ask(wire.Path, wire.OpStatus, func(answer *wire.Answer) {
		if answer.Status != nil {
			found, unknown = answer.Status.Handover, answer.Status.Unknown
		}
	})
	if err == nil && unknown != "" {
		err = fmt.Errorf("%w: %s", bridge.ErrUnsettled, unknown)
	}
	return found, err
}
