// SPDX-License-Identifier: Apache-2.0

// Command fdbridgectl shows an operator what fdbridge will carry, what it holds
// and what the last live update did. It says beforehand what the next one would
// do, and begins it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/version"
	"github.com/fdbridge/fdbridge/session"
)

func main() {
	local := daemon{socket: wire.Path, device: session.Path}
	os.Exit(run(command(local, thisHost()), os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the command line and returns the exit status.
func run(root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return 0
	}
	status := 1
	if f, ok := errors.AsType[failure](err); ok {
		status, err = f.status, f.err
	}
	if err != nil {
		fmt.Fprintf(stderr, "fdbridgectl: %s\n", oneLine(err.Error()))
	}
	return status
}

// failure ends the command with an exit status, and says why unless err is nil,
// when all has been said.
type failure struct {
	status int
	err    error
}

func (f failure) Error() string { return fmt.Sprint(f.err) }

// command builds the command line that asks d, and checks and replaces h.
func command(d daemon, h host) *cobra.Command {
	root := &cobra.Command{
		Use:                "fdbridgectl",
		Short:              "Show what fdbridge carries across live kernel updates",
		Version:            version.Version,
		SilenceUsage:       true,
		SilenceErrors:      true,
		DisableSuggestions: true, // an error is one line
	}
	asJSON := root.PersistentFlags().Bool("json", false, "print JSON instead of text")
	root.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the units whose fds are carried, and those that fds are held for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := d.units()
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), *asJSON, list, func() string { return unitsText(list) })
		},
	}, &cobra.Command{
		Use:   "status",
		Short: "Show the state of fdbridge and what the last live update did",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := d.report()
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), *asJSON, report, func() string { return reportText(report) })
		},
	}, &cobra.Command{
		Use:   "drop UNIT",
		Short: "Let go of the fds that are held for a unit, which are lost then",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return d.explain(wire.Drop(d.socket, args[0])) },
	}, checkCommand(h, asJSON), kexecCommand(h, asJSON))
	return root
}

// report is what status prints.
type report struct {
	wire.Status
	// Lost are the fds that the last live update did not carry.
	Lost []wire.Lost `json:"lost"`
	// Problems are sentences about what went wrong in this boot.
	Problems []string `json:"problems"`
}

// daemon is the fdbridged that is asked.
type daemon struct {
	socket string // where it listens
	device string // the kernel's; without it fdbridged is not started
}

func (d daemon) units() ([]wire.Unit, error) {
	list := []wire.Unit{}
	err := d.ask(wire.OpList, func(a *wire.Answer) {
		if a.Unit != nil {
			list = append(list, *a.Unit)
		}
	})
	return list, err
}

func (d daemon) report() (*report, error) {
	r := &report{Lost: []wire.Lost{}, Problems: []string{}}
	err := d.ask(wire.OpStatus, func(a *wire.Answer) {
		switch {
		case a.Status != nil:
			r.Status = *a.Status
		case a.Lost != nil:
			r.Lost = append(r.Lost, *a.Lost)
		case a.Problem != "":
			r.Problems = append(r.Problems, a.Problem)
		}
	})
	return r, err
}

func (d daemon) ask(op string, each func(*wire.Answer)) error {
	return d.explain(wire.Ask(d.socket, op, each))
}

// explain adds to an error of the connection what an operator can do about it.
func (d daemon) explain(err error) error {
	switch {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: only root may ask fdbridged", err)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("fdbridged broke off its answer: %w", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		if _, missing := os.Stat(d.device); errors.Is(missing, fs.ErrNotExist) {
			return errors.New("fdbridged is not running, because this kernel offers no live update: it needs CONFIG_LIVEUPDATE=y and to be booted with kho=on liveupdate=on")
		}
		return fmt.Errorf("%w: fdbridged is not running; see systemctl status fdbridged.service", err)
	}
	return err
}

// output prints v as JSON, or as text.
func output(w io.Writer, asJSON bool, v any, text func() string) error {
	if !asJSON {
		_, err := io.WriteString(w, text())
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	return encoder.Encode(v)
}
