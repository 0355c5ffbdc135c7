// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

const (
	// prepareWait bounds how long preserving ahead may take, which goes on beyond it.
	prepareWait = 10 * time.Minute
	// beginWait bounds how long it may take until a service begins to start or ends.
	beginWait = 30 * time.Second
)

// prepared is what prepare prints as JSON.
type prepared struct {
	Summary string `json:"summary"`
}

func prepareCommand(h host, v *view) *cobra.Command {
	return &cobra.Command{
		Use:   "prepare",
		Short: "Preserve what can be while services run, for an update that comes soon",
		Long: "Preserve what can be while services run: see Early= in fdbridge.directives(7).\n" +
			"The systemctl kexec that follows only has the rest to do. It is undone by\n" +
			"fdbridgectl abort, or when none follows for PrepareTimeoutSec=.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			summary, err := h.prepare(cmd.Context())
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), v.json, prepared{summary}, func() string { return summary + "\n" })
		},
	}
}

func abortCommand(h host) *cobra.Command {
	return &cobra.Command{
		Use:   "abort",
		Short: "Undo what was prepared",
		Args:  cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return h.abort(cmd.Context()) },
	}
}

// prepareNow starts the service that preserves, which prepares as long as there is no
// shutdown, and waits until it has. Its status says what it has done.
func prepareNow(ctx context.Context) (summary string, err error) {
	if _, err := os.Stat(session.Path); errors.Is(err, fs.ErrNotExist) {
		return "", session.ErrNoDevice // the service would not start, and say nothing
	}
	reader := &units.Reader{Socket: units.PrivateSocket}
	before, err := reader.Service(ctx, bridge.PreserveUnit)
	if err != nil {
		return "", onlyRoot(err)
	}
	err = withManager(ctx, func(m *units.Manager) error { return m.Start(ctx, bridge.PreserveUnit) })
	if err != nil {
		return "", err
	}
	p, start := preparation{before: before}, time.Now()
	err = reader.Follow(ctx, bridge.PreserveUnit, prepareWait, func(s units.Service) bool {
		return p.over(s, time.Since(start))
	})
	return p.summary, errors.Join(err, p.err)
}

// preparation is what becomes of the service that preserves after it was started.
type preparation struct {
	before  units.Service // what it was
	begun   bool
	summary string // what it has prepared
	err     error  // why nothing is
}

// over takes what the service is after a while, and tells whether it is known what has become
// of it. Its status is true as long as it is being started, which it is while something is
// prepared: the service manager remembers it after that.
func (p *preparation) over(s units.Service, after time.Duration) bool {
	starting := s.Active == "activating"
	p.begun = p.begun || starting || s.Left != p.before.Left
	switch {
	case starting && s.Status != "":
		p.summary = s.Status
	case starting || !p.begun && after <= beginWait:
		return false
	case p.begun:
		p.err = fmt.Errorf("%s has ended, and nothing is prepared; see journalctl -t fdbridge and systemctl status %[1]s", bridge.PreserveUnit)
	default:
		p.err = fmt.Errorf("%s has not begun to start within %v, and is %s; see systemctl status %[1]s", bridge.PreserveUnit, beginWait, s.Active)
	}
	return true
}

// abortNow stops that service, and waits until it has ended.
func abortNow(ctx context.Context) error {
	err := withManager(ctx, func(m *units.Manager) error { return m.Stop(ctx, bridge.PreserveUnit) })
	if err != nil {
		return err
	}
	reader := &units.Reader{Socket: units.PrivateSocket}
	return reader.Follow(ctx, bridge.PreserveUnit, beginWait, func(s units.Service) bool {
		return s.Active == "inactive" || s.Active == "failed"
	})
}

func withManager(ctx context.Context, do func(m *units.Manager) error) error {
	manager, err := units.Connect(ctx, units.PrivateSocket)
	if err != nil {
		return onlyRoot(err)
	}
	return errors.Join(do(manager), manager.Close())
}

// onlyRoot says why PID 1 cannot be asked, where that is why.
func onlyRoot(err error) error {
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: only root may ask PID 1", err)
	}
	return err
}
