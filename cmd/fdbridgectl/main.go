// SPDX-License-Identifier: Apache-2.0

// Command fdbridgectl shows an operator what fdbridge will carry, what it holds
// and what the last live update did.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/version"
)

func main() {
	if err := command(wire.Path).Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "fdbridgectl: %v\n", err)
		os.Exit(1)
	}
}

// command builds the command line for the fdbridged at socket.
func command(socket string) *cobra.Command {
	root := &cobra.Command{
		Use:           "fdbridgectl",
		Short:         "Show what fdbridge carries across live kernel updates",
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	asJSON := root.PersistentFlags().Bool("json", false, "print JSON instead of text")
	root.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the units whose fds are carried, and those that fds are held for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := fetchUnits(socket)
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), *asJSON, list, func(w io.Writer) error { return printUnits(w, list) })
		},
	}, &cobra.Command{
		Use:   "status",
		Short: "Show the state of fdbridge and what the last live update did",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := fetchReport(socket)
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), *asJSON, report, func(w io.Writer) error { return printReport(w, report) })
		},
	})
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

func fetchUnits(socket string) ([]wire.Unit, error) {
	list := []wire.Unit{}
	err := wire.Ask(socket, wire.OpList, func(a *wire.Answer) {
		if a.Unit != nil {
			list = append(list, *a.Unit)
		}
	})
	return list, explain(err)
}

func fetchReport(socket string) (*report, error) {
	r := &report{Lost: []wire.Lost{}, Problems: []string{}}
	err := wire.Ask(socket, wire.OpStatus, func(a *wire.Answer) {
		switch {
		case a.Status != nil:
			r.Status = *a.Status
		case a.Lost != nil:
			r.Lost = append(r.Lost, *a.Lost)
		case a.Problem != "":
			r.Problems = append(r.Problems, a.Problem)
		}
	})
	return r, explain(err)
}

// explain tells an operator what to do about an fdbridged that is not there.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: only root may ask fdbridged", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		if _, missing := os.Stat("/dev/liveupdate"); missing != nil {
			return fmt.Errorf("fdbridged is not running, because this kernel offers no live update: it needs CONFIG_LIVEUPDATE=y and to be booted with kho=on liveupdate=on")
		}
		return fmt.Errorf("%w: fdbridged is not running; see systemctl status fdbridged.service", err)
	}
	return err
}

// output prints v as JSON, or as text.
func output(w io.Writer, asJSON bool, v any, text func(io.Writer) error) error {
	if !asJSON {
		return text(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	return encoder.Encode(v)
}
