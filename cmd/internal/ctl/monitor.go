// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// event is what monitor prints of something that happens; one of its fields
// besides the time is set.
type event struct {
	Time    time.Time    `json:"time"` // when fdbridgectl was told of it
	Change  *wire.Change `json:"change,omitempty"`
	Problem string       `json:"problem,omitempty"`
}

func monitorCommand(d daemon, v *view) *cobra.Command {
	return &cobra.Command{
		Use:   "monitor",
		Short: "Print what happens to the fds of units, as it happens",
		Long: "Print what happens to the fds of units, as it happens, until interrupted: a\n" +
			"line each, or with --json an object on each line.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			var failed error // to print
			err := wire.Watch(ctx, d.socket, func(a *wire.Answer) {
				if *a == (wire.Answer{}) { // it begins
					fmt.Fprintln(cmd.ErrOrStderr(), "Monitoring fdbridged.")
					return
				}
				if failed = printEvent(cmd.OutOrStdout(), v.json, time.Now(), a); failed != nil {
					stop()
				}
			})
			if ctx.Err() != nil { // it was told to end
				return failed
			}
			if errors.Is(err, unix.EACCES) {
				return fmt.Errorf("%w: only root may ask fdbridged; everybody may run: gdbus monitor --system --dest %s", err, busName)
			}
			return d.explain(err)
		},
	}
}

func printEvent(w io.Writer, asJSON bool, now time.Time, a *wire.Answer) (err error) {
	what := a.Problem
	if c := a.Change; c != nil {
		what = fmt.Sprintf("%s: %s %s", c.Unit, count(c.FDs, "fd"), c.What)
	}
	switch {
	case what == "": // something that a later fdbridged tells
	case asJSON:
		err = json.NewEncoder(w).Encode(event{now, a.Change, a.Problem})
	default:
		_, err = fmt.Fprintf(w, "%s %s\n", now.Format(time.RFC3339), oneLine(what))
	}
	return err
}
