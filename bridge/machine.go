// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"io/fs"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/version"
	"github.com/fdbridge/fdbridge/kho"
)

// Machine says what is known of the running kernel, for a Status. root is the
// machine's file system, log returns its kernel log; both as kho.ReadState
// takes them. With an error the rest is there nevertheless.
func Machine(root fs.FS, log func() ([]byte, error)) (wire.Status, error) {
	status := wire.Status{Version: version.Version}
	origin, err := kho.ReadOrigin(root, time.Now())
	if err != nil {
		return status, err
	}
	status.Kernel = wire.Kernel{Release: origin.Kernel, BootID: origin.BootID}
	state, err := kho.ReadState(root, log)
	status.Kernel.Device = state.Device.Value
	if state.Number.Known {
		status.Kernel.LiveUpdateNumber = &state.Number.Value
	}
	status.Kernel.Previous = state.Previous.Value
	for _, why := range []string{state.Number.Why, state.Previous.Why} {
		if why != "" {
			status.Kernel.Note = why
			break
		}
	}
	return status, err
}
