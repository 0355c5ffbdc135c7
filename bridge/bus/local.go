// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// Local is the Backend of this machine: fdbridged, and fdbridgectl for checks, which
// unpack kernels: that is kept out of a process that everybody may talk to.
type Local struct {
	Socket string // wire.Path but in tests
	Ctl    string // the path of fdbridgectl
}

// explain says which of fdbridged's errors mean that it is not there.
func explain(err error) error {
	for _, gone := range []error{unix.ENOENT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.EOF} {
		if errors.Is(err, gone) {
			return fmt.Errorf("%w: %w", ErrNotRunning, err)
		}
	}
	return err
}

// Units returns what fdbridged lists. It waits a minute at most for each part.
func (l Local) Units(context.Context) (list []wire.Unit, err error) {
	err = wire.Ask(l.Socket, wire.OpList, func(a *wire.Answer) {
		if a.Unit != nil {
			list = append(list, *a.Unit)
		}
	})
	return list, explain(err)
}

// Status returns the part of Report that is about all units.
func (l Local) Status(ctx context.Context) (wire.Status, error) {
	report, err := l.Report(ctx)
	return report.Status, err
}

// Report returns fdbridged's. It waits a minute at most for each part.
func (l Local) Report(context.Context) (*wire.Report, error) {
	report, err := wire.ReadReport(l.Socket)
	return report, explain(err)
}

// Show returns a unit's fds. It waits a minute at most for each part.
func (l Local) Show(_ context.Context, unit string) (*wire.Shown, error) {
	shown, err := wire.Show(l.Socket, unit)
	return shown, explain(err)
}

// Drop makes fdbridged do so, within a minute.
func (l Local) Drop(_ context.Context, unit string) error { return explain(wire.Drop(l.Socket, unit)) }

// Deliver makes fdbridged do so, within a minute.
func (l Local) Deliver(_ context.Context, unit, as string) error {
	_, err := wire.DeliverAs(l.Socket, unit, as)
	return explain(err)
}

// Watch calls changed for all that fdbridged tells, until it hangs up or ctx ends.
func (l Local) Watch(ctx context.Context, changed func()) error {
	return explain(wire.Watch(ctx, l.Socket, func(*wire.Answer) { changed() }))
}

// checkWait is how long fdbridgectl may take to end when it is killed.
const checkWait = 5 * time.Second

// Check runs fdbridgectl check, until ctx ends. Its exit status says what is in its
// output, too; without output it has failed.
func (l Local) Check(ctx context.Context) (*Verdict, error) {
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, l.Ctl, "check", "--json")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, checkWait
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("the check was broken off: %w", context.Cause(ctx))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	if said := strings.TrimSpace(stderr.String()); stdout.Len() == 0 && said != "" {
		return nil, errors.New(said)
	}
	found := &Verdict{}
	if err := json.Unmarshal([]byte(stdout.String()), found); err != nil {
		return nil, fmt.Errorf("what %s prints is no verdict: %w", l.Ctl, err)
	}
	return found, nil
}
