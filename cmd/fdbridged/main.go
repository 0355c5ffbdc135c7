// SPDX-License-Identifier: Apache-2.0

// Command fdbridged holds the fd stores that came through a live update until
// their units want them (serve), and puts the stores into live-update sessions
// before the next one (preserve). systemd runs both.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/version"
)

func main() {
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
	})
	if err := root.Execute(); err != nil {
		journal.Native("fdbridged").Err("%v", err)
		fmt.Fprintln(os.Stderr, "fdbridged:", err) // for who runs it by hand
		os.Exit(1)
	}
}
