// SPDX-License-Identifier: Apache-2.0

// Package ctl is the command fdbridgectl. It shows an operator what fdbridge will
// carry, what it holds and what the last live update did. It says beforehand what the
// next one would do, and begins it.
package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/version"
	"github.com/fdbridge/fdbridge/session"
)

// Name is the command's, by which a program that is several commands knows it.
const Name = "fdbridgectl"

// Main runs the command line of this process and returns the exit status.
func Main() int {
	local := daemon{socket: wire.Path, bus: busSocket, agent: "/usr/bin/pkttyagent", device: session.Path}
	return run(command(local, thisHost(), screenOf(os.Stdout, os.Getenv)), os.Args[1:], os.Stdout, os.Stderr)
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

// command builds the command line that asks d, checks and replaces h, and writes
// to a screen.
func command(d daemon, h host, s screen) *cobra.Command {
	root := &cobra.Command{
		Use:                Name,
		Short:              "Show what fdbridge carries across live kernel updates",
		Version:            version.Version,
		SilenceUsage:       true,
		SilenceErrors:      true,
		DisableSuggestions: true, // an error is one line
		CompletionOptions:  cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	v := &view{screen: s}
	root.PersistentFlags().BoolVar(&v.json, "json", false, "print JSON instead of text")
	root.AddCommand(listCommand(d, v), statusCommand(d, v), showCommand(d, v), checkCommand(d, h, v), kexecCommand(h, v),
		prepareCommand(h, v), abortCommand(h), dropCommand(d), deliverCommand(d, v), monitorCommand(d, v), inspectCommand(d, v), featuresCommand(h, v))
	return root
}

func listCommand(d daemon, v *view) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the units whose fds are carried, and those that fds are held for",
		Args:  cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := d.units()
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), v.json, list, func() string { return v.unitsText(list) })
		},
	}
	v.addFull(cmd)
	return cmd
}

func dropCommand(d daemon) *cobra.Command {
	return &cobra.Command{
		Use:   "drop UNIT",
		Short: "Let go of the fds that are held for a unit, which are lost then",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return d.drop(unitName(args[0]))
		},
		ValidArgsFunction: d.completeUnits(heldUnit),
	}
}

// addFull gives a command the option that nothing is cut.
func (v *view) addFull(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&v.full, "full", "l", false, "cut no names, and leave nothing out")
}

// unitName completes the name of a unit as systemctl does; none but services have
// an fd store.
func unitName(arg string) string {
	if strings.HasSuffix(arg, ".service") {
		return arg
	}
	return arg + ".service"
}

// daemon is the fdbridged that is asked.
type daemon struct {
	socket string // where it listens
	bus    string // where the message bus does
	agent  string // the program that asks a user on a terminal to authenticate
	device string // the kernel's; without it fdbridged is not started
}

func (d daemon) units() ([]wire.Unit, error) {
	list := []wire.Unit{}
	err := d.ask(wire.OpList, func(a *wire.Answer) {
		if a.Unit != nil {
			list = append(list, *a.Unit)
		}
	})
	if errors.Is(err, unix.EACCES) {
		return d.unitsOnBus()
	}
	return list, err
}

func (d daemon) drop(unit string) error {
	err := wire.Drop(d.socket, unit)
	if errors.Is(err, unix.EACCES) {
		return d.change("Drop", unit)
	}
	return d.explain(err)
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
