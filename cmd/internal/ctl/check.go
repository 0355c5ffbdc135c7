// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// host is the machine whose next live update is checked and begun.
type host struct {
	check.Kexec
	prepare  func(ctx context.Context) (summary string, err error)
	abort    func(ctx context.Context) error
	features func(ctx context.Context) (*check.Features, error)
	cmdline  func() (string, error) // of the running kernel
}

func thisHost() host {
	return host{
		Kexec:    check.Kexec{Check: checkNow, Load: kho.LoadKernel, Start: start},
		prepare:  prepareNow,
		abort:    abortNow,
		features: featuresNow,
		cmdline:  func() (string, error) { return kho.ReadCommandLine(os.DirFS("/")) },
	}
}

// thisChecker goes by the same settings as fdbridged preserves by, which is where
// problems of theirs are reported.
func thisChecker() *check.Checker {
	rules, _ := config.LoadRules("/")
	reader := &units.Reader{Socket: units.PrivateSocket}
	return &check.Checker{
		Stores:     reader,
		Duplicator: func() (check.Duplicator, error) { return units.OpenDuplicator(1) },
		Kernel:     session.System{},
		State:      reader.State,
		Excluded:   rules.Excluded,
		Required:   rules.Required,
		Root:       os.DirFS("/"),
		KernelLog:  kho.KernelLog,
	}
}

func checkNow(ctx context.Context, target *check.Target) (*check.Result, error) {
	found, err := thisChecker().Run(ctx, target)
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: only root may ask PID 1", err)
	}
	return found, err
}

// start becomes systemctl, which stops everything and boots the loaded kernel.
func start() error {
	path, err := exec.LookPath("systemctl")
	if err != nil {
		return err
	}
	return os.NewSyscallError("execve "+path, unix.Exec(path, []string{"systemctl", "kexec"}, os.Environ()))
}

// The exit statuses of check, and of kexec when that is refused.
const (
	statusLossy      = 1
	statusImpossible = 2 // also when nothing can be said
)

// verdict is the end of a command that has reported what a check found.
func verdict(outcome check.Outcome, err error) error {
	switch outcome {
	case check.Carried:
		return nil
	case check.Lossy:
		return failure{statusLossy, err}
	}
	return failure{statusImpossible, err}
}

func checkCommand(d daemon, h host, v *view) *cobra.Command {
	var kernel string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what would be lost if systemctl kexec were called now",
		Long: "Say what would be lost if systemctl kexec were called now.\n\n" +
			"The exit status is 0 when nothing would be, 1 when something would be or may\n" +
			"be, and 2 when a live update cannot work at all or nothing can be said.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			outcome, err := checkAndPrint(cmd.Context(), cmd.OutOrStdout(), h, v, kernel)
			if kernel == "" && errors.Is(err, unix.EACCES) {
				outcome, err = d.check(cmd.OutOrStdout(), v)
			}
			if err != nil {
				return failure{statusImpossible, err}
			}
			return verdict(outcome, nil)
		},
	}
	cmd.Flags().StringVar(&kernel, "kernel", "", "judge this kernel `image`, not the one that is loaded")
	return cmd
}

func checkAndPrint(ctx context.Context, w io.Writer, h host, v *view, kernel string) (check.Outcome, error) {
	found, err := checkImage(ctx, h, kernel)
	if err != nil {
		return "", err
	}
	return found.Outcome, output(w, v.json, found, func() string { return v.checkText(found) })
}

func checkImage(ctx context.Context, h host, name string) (*check.Result, error) {
	if name == "" {
		return h.Check(ctx, nil)
	}
	kernel, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	info, err := kernel.Stat()
	if err != nil {
		return nil, err
	}
	return h.Check(ctx, &check.Target{Name: name, Image: kernel, Size: info.Size()})
}

func kexecCommand(h host, v *view) *cobra.Command {
	var o check.Options
	var reuse bool
	cmd := &cobra.Command{
		Use:   "kexec",
		Short: "Replace the kernel, unless something would be lost",
		Long: "Check what would be lost, load the kernel, prepare as fdbridgectl prepare does,\n" +
			"and call systemctl kexec.\n\n" +
			"What the check finds is refused with its exit status, see fdbridgectl check\n" +
			"--help. Without --kernel the kernel is booted that is loaded already.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd, h, &o, reuse); err != nil {
				return err
			}
			h.Prepare = func(ctx context.Context) {
				if _, err := h.prepare(ctx); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "fdbridgectl: nothing is prepared: %s\n", oneLine(err.Error()))
				}
			}
			var outcome check.Outcome
			err := h.Run(cmd.Context(), o, func(found *check.Result) error {
				outcome = found.Outcome
				return output(cmd.OutOrStdout(), v.json, found, func() string { return v.checkText(found) })
			})
			if errors.Is(err, check.ErrRefused) {
				return verdict(outcome, errors.New("nothing was done; --force does it nevertheless"))
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Kernel, "kernel", "", "load this kernel `image`")
	flags.StringVar(&o.Initrd, "initrd", "", "and this initrd `file`")
	flags.StringVar(&o.Cmdline, "cmdline", "", "and give it this command `line`")
	flags.BoolVar(&reuse, "reuse-cmdline", false, "and give it the running kernel's command line")
	flags.BoolVar(&o.Force, "force", false, "do it whatever is lost")
	return cmd
}

// complete refuses options that do not go together, and fills in the command line.
func complete(cmd *cobra.Command, h host, o *check.Options, reuse bool) (err error) {
	given := cmd.Flags().Changed("cmdline")
	switch {
	case o.Kernel == "" && (o.Initrd != "" || given || reuse):
		return errors.New("--initrd, --cmdline and --reuse-cmdline need --kernel")
	case o.Kernel != "" && given == reuse:
		return errors.New("--kernel needs one of --cmdline and --reuse-cmdline")
	case reuse:
		o.Cmdline, err = h.cmdline()
	}
	return err
}
