// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/version"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/kho/image"
)

// Features is what this machine can do. What is nil cannot be told, and Notes
// says why. Its JSON is an interface: members may be added.
type Features struct {
	Version    string          `json:"version"` // of fdbridge
	Kernel     KernelFeatures  `json:"kernel"`
	Systemd    SystemdFeatures `json:"systemd"`
	Directives Directives      `json:"directives"`
	// Notes say why something is not so or not known, a sentence each.
	Notes []string `json:"notes"`
}

// KernelFeatures is what the running kernel can do.
type KernelFeatures struct {
	Release          string  `json:"release"`
	LiveUpdate       *bool   `json:"live_update"`        // it is on
	LiveUpdateNumber *uint64 `json:"live_update_number"` // how many there were since power-on
	Memfd            *bool   `json:"memfd"`              // a live update carries memfds
	Seals            *bool   `json:"seals"`              // and their seals
	// SessionFiles and Sessions are the most files that a session, and sessions
	// that a live update can have; nil also where there is no limit to meet.
	SessionFiles *int `json:"session_files"`
	Sessions     *int `json:"sessions"`
}

// SystemdFeatures is what the service manager can do.
type SystemdFeatures struct {
	Version string `json:"version,omitempty"`
	Carries *bool  `json:"carries"` // it carries fd stores itself
}

// Directives is what FileDescriptorStoreMax= above zero with
// FileDescriptorStorePreserve=yes gives a unit here besides a store that
// outlasts a stop: what is carried through a live update, and by whom.
type Directives struct {
	Carried []string `json:"carried"`      // the types of files
	By      string   `json:"by,omitempty"` // "fdbridge" or "systemd"; empty: nobody
}

// The releases in which the kernel has learnt something.
var (
	linux619 = kho.Release{Major: 6, Minor: 19} // live update, with memfds
	linux71  = kho.Release{Major: 7, Minor: 1}  // seals
	linux72  = kho.Release{Major: 7, Minor: 2}  // no limits
)

// The limits before Linux 7.2: of luo_file.c, and of luo_session.c.
const (
	oldSessionFiles = 128
	oldSessions     = 819
)

// Features finds out what this machine can do. It takes two minutes at most, and
// an error means that nothing can be said.
func (c *Checker) Features(ctx context.Context) (*Features, error) {
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it has taken longer than %v", timeout))
	defer stop()
	f := &Features{Version: version.Version, Directives: Directives{Carried: []string{}}, Notes: []string{}}
	if err := c.kernelFeatures(ctx, f); err != nil {
		return nil, fmt.Errorf("find out what this machine can do: %w", err)
	}
	ready := c.systemdFeatures(ctx, f)
	f.conclude(ready)
	return f, nil
}

func (f *Features) note(format string, args ...any) {
	f.Notes = append(f.Notes, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
}

func (c *Checker) kernelFeatures(ctx context.Context, f *Features) error {
	state, err := kho.ReadState(c.Root, c.KernelLog)
	if err != nil {
		return err
	}
	origin, err := kho.ReadOrigin(c.Root, time.Now())
	if err != nil {
		return err
	}
	k := &f.Kernel
	k.Release = origin.Kernel
	release := kho.ReleaseOf(k.Release)
	if !release.Before(linux619) && release.Before(linux72) {
		k.SessionFiles, k.Sessions = new(oldSessionFiles), new(oldSessions)
	}
	if !state.LUO.Known {
		f.note("Whether live update is on cannot be told: %s.", state.LUO.Why)
		return nil
	}
	k.LiveUpdate = &state.LUO.Value
	if !state.LUO.Value {
		k.LiveUpdateNumber, k.Memfd, k.Seals = new(uint64(0)), new(false), new(false)
		why, err := c.whyNot(ctx, &state)
		f.note("Live update is off: %s.", why)
		return err
	}
	if k.LiveUpdateNumber = &state.Number.Value; !state.Number.Known {
		k.LiveUpdateNumber = nil
		f.note("How many live updates there were cannot be told: %s.", state.Number.Why)
	}
	running, err := image.Running(ctx, c.Root)
	if err != nil {
		return err
	}
	f.memfds(running)
	k.Seals = new(!release.Before(linux71) && (k.Memfd == nil || *k.Memfd))
	return nil
}

// memfds finds out whether the kernel, with live update, was built to carry memfds.
func (f *Features) memfds(running *image.Kernel) {
	switch answer, why := running.Has(image.Memfd); answer {
	case image.Unknown:
		f.note("Memfds may not be carried: %s.", why)
	default:
		f.Kernel.Memfd = new(answer == image.Yes)
	}
}

// systemdFeatures asks the service manager, and tells whether fdbridge's own
// units are as they must be.
func (c *Checker) systemdFeatures(ctx context.Context, f *Features) (ready bool) {
	var err error
	if f.Systemd.Version, err = c.Stores.Version(ctx); err == nil {
		var carries bool
		if carries, err = c.Stores.Carries(ctx); err == nil {
			f.Systemd.Carries = &carries
		}
	}
	found := &Result{}
	if err == nil {
		err = c.services(ctx, found)
	}
	if err != nil {
		f.note("What the service manager does cannot be told: %v.", err)
		return true
	}
	ready = true
	for _, p := range found.Problems {
		f.note("%s. %s", p.Message, p.Remedy)
		ready = ready && p.Outcome != Impossible
	}
	return ready
}

// conclude says what the directives would give.
func (f *Features) conclude(ready bool) {
	k, carries := &f.Kernel, f.Systemd.Carries != nil && *f.Systemd.Carries
	if k.LiveUpdate == nil || !*k.LiveUpdate || !ready && !carries {
		return
	}
	if k.Memfd == nil || *k.Memfd {
		f.Directives.Carried = append(f.Directives.Carried, "memfd", "file on tmpfs without a name")
	}
	if carries {
		f.Directives.Carried = append(f.Directives.Carried, "luo_session")
	}
	f.Directives.By = "fdbridge"
	if !ready {
		f.Directives.By = "systemd"
	}
}
