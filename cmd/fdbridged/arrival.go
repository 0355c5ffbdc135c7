// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"os"
	"time"

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
		Record: bridge.RecordFile, Lost: bridge.LostFile, BootID: origin.BootID, Device: session.Path,
		Status: func() (status *wire.Status, err error) {
			err = wire.Ask(wire.Path, wire.OpStatus, func(answer *wire.Answer) { status = cmp.Or(answer.Status, status) })
			return status, err
		},
		Log: journal.Native("fdbridged"),
	}
	err = a.Review()
	if errors.Is(err, bridge.ErrUnsettled) { // fdbridged starts this again when it is
		a.Log.Warning("%v", err)
		return nil
	}
	return err
}
