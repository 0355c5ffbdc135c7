// SPDX-License-Identifier: Apache-2.0

// Command fdbridged holds the fd stores that came through a live update until
// their units want them (serve), and puts the stores into live-update sessions
// before the next one (preserve). Another process of it talks to the message bus
// (bus). systemd runs all of them. Under the name of fdbridgectl it is that.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/cmd/internal/ctl"
	"github.com/fdbridge/fdbridge/internal/version"
)

func main() {
	if filepath.Base(os.Args[0]) == ctl.Name {
		os.Exit(ctl.Main())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	root := &cobra.Command{
		Use:               "fdbridged",
		Short:             "Carry file descriptor stores across a live kernel update",
		Version:           version.Version,
		Args:              cobra.NoArgs,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(&cobra.Command{
		Use:   "serve",
		Short: "Hold what the last live update brought until its units want it",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return serve(ctx) },
	}, &cobra.Command{
		Use:   "preserve",
		Short: "Put the fd stores into sessions, and stay until the kernel is replaced",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return preserve(ctx) },
	}, &cobra.Command{
		Use:   "arrival",
		Short: "Report what was lost with a live update that did not arrive",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return arrival() },
	}, &cobra.Command{
		Use:   "bus",
		Short: "Serve D-Bus on the system bus",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return serveBus(ctx) },
	})
	if err := root.Execute(); err != nil {
		if os.Getenv("INVOCATION_ID") != "" { // as a service, whose standard error may be the journal, too
			journal.Native("fdbridged").Err("%v", err)
		} else {
			fmt.Fprintln(os.Stderr, "fdbridged:", err)
		}
		os.Exit(1)
	}
}
