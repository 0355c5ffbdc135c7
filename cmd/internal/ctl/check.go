// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
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

// thisChecker goes by the same settings as fdbridged preserves by.
func thisChecker() *check.Checker {
	rules, _ := config.LoadRules("/")
	settings, problems := config.Load("/")
	_, unfit := generator.MakeRegister("/", unitfile.SearchPath(os.LookupEnv("SYSTEMD_UNIT_PATH")), settings.Excluded)
	reader := &units.Reader{Socket: units.PrivateSocket}
	return &check.Checker{
		Stores:     reader,
		Duplicator: func() (bridge.Duplicator, error) { return units.OpenDuplicator(1) },
		Kernel:     session.System{},
		State:      reader.State,
		Excluded:   rules.Excluded,
		Required:   rules.Required,
		Settings:   append(problems, unfit...),
		Root:       os.DirFS("/"),
		KernelLog:  kho.KernelLog,
	}
}

func checkNow(ctx context.Context, target *check.Target) (*check.Result, error) {
	found, err := thisChecker().Run(ctx, target)
	return found, onlyRoot(err)
}

// start has systemctl stop everything and boot the loaded kernel. It may refuse, as when
// something inhibits a shutdown.
func start() error {
	cmd := exec.Command("systemctl", "kexec")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("systemctl kexec: %w", err)
	}
	return nil
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
	var line line
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what would be lost if systemctl kexec were called now",
		Long: "Say what would be lost if systemctl kexec were called now.\n\n" +
			"The exit status is 0 when nothing would be, 1 when something would be or may\n" +
			"be, and 2 when a live update cannot work at all or nothing can be said.",
		ValidArgsFunction: cobra.NoFileCompletions,
		Args:              func(cmd *cobra.Command, args []string) error { return nothingSaid(cobra.NoArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := line.complete(cmd, h); err != nil {
				return nothingSaid(err)
			}
			outcome, err := checkAndPrint(cmd.Context(), cmd.OutOrStdout(), h, v, kernel, &line)
			if kernel == "" && errors.Is(err, unix.EACCES) {
				outcome, err = d.check(cmd.OutOrStdout(), v)
			}
			if err != nil {
				return nothingSaid(err)
			}
			return verdict(outcome, nil)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return nothingSaid(err) })
	cmd.Flags().StringVar(&kernel, "kernel", "", "judge this kernel `image`, not the one that is loaded")
	line.flags(cmd, "judge it with")
	return cmd
}

// nothingSaid ends check with the status of when nothing can be said; nil with nil.
func nothingSaid(err error) error {
	if err == nil {
		return nil
	}
	return failure{statusImpossible, err}
}

func checkAndPrint(ctx context.Context, w io.Writer, h host, v *view, kernel string, line *line) (check.Outcome, error) {
	found, err := checkImage(ctx, h, kernel, line)
	if err != nil {
		return "", err
	}
	return found.Outcome, output(w, v.json, found, func() string { return v.checkText(found) })
}

func checkImage(ctx context.Context, h host, name string, line *line) (*check.Result, error) {
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
	target := &check.Target{Name: name, Image: kernel, Size: info.Size()}
	if line.given {
		target.Cmdline = &line.text
	}
	return h.Check(ctx, target)
}

func kexecCommand(h host, v *view) *cobra.Command {
	var o check.Options
	var line line
	cmd := &cobra.Command{
		Use:   "kexec",
		Short: "Replace the kernel, unless something would be lost",
		Long: "Check what would be lost, load the kernel, prepare as fdbridgectl prepare does,\n" +
			"and call systemctl kexec.\n\n" +
			"What the check finds is refused with its exit status, see fdbridgectl check\n" +
			"--help. Without --kernel the kernel is booted that is loaded already.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := line.complete(cmd, h); err != nil {
				return err
			}
			if o.Kernel != "" && !line.given {
				return errors.New("--kernel needs one of --cmdline and --reuse-cmdline")
			}
			o.Cmdline = line.text
			h.Prepare = func(ctx context.Context) {
				if _, err := h.prepare(ctx); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "fdbridgectl: nothing is prepared: %s\n", oneLine(err.Error()))
				}
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			h.Undo = func(ctx context.Context) {
				stop() // whoever does not want to wait for it need not
				if err := h.abort(ctx); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "fdbridgectl: what was prepared stays so until PrepareTimeoutSec= has passed, or fdbridgectl abort: %s\n", oneLine(err.Error()))
				}
			}
			var said *check.Result
			err := h.Run(ctx, o, func(found *check.Result) error {
				said = found
				return output(cmd.OutOrStdout(), v.json, found, func() string { return v.checkText(found) })
			})
			if errors.Is(err, check.ErrRefused) {
				return verdict(said.Outcome, refusal(said))
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Kernel, "kernel", "", "load this kernel `image`")
	flags.StringVar(&o.Initrd, "initrd", "", "and this initrd `file`")
	line.flags(cmd, "and give it")
	flags.BoolVar(&o.Force, "force", false, "do it whatever would be lost")
	return cmd
}

// interruptible returns a context that ends with a signal that ends the process otherwise, but
// for those that it was started without, as by nohup(1).
func interruptible(ctx context.Context) (context.Context, func()) {
	ends := slices.DeleteFunc([]os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}, signal.Ignored)
	if len(ends) == 0 { // NotifyContext would take all that there are
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, ends...)
}

// refusal says what the operator can do about it that a kexec is refused.
func refusal(found *check.Result) error {
	if found.CalledOff {
		return errors.New("nothing was done; with --force, services would be stopped, and the live update called off for what has Required=yes and would still be lost then")
	}
	return errors.New("nothing was done; --force does it nevertheless")
}

// line is the next kernel's command line.
type line struct {
	text         string
	given, reuse bool
}

func (l *line) flags(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&l.text, "cmdline", "", what+" this command `line`")
	cmd.Flags().BoolVar(&l.reuse, "reuse-cmdline", false, what+" the running kernel's command line")
}

// complete refuses options that do not go together, and a file without a name, which
// a variable that is not set would be; it fills in the line.
func (l *line) complete(cmd *cobra.Command, h host) (err error) {
	flags := cmd.Flags()
	for _, name := range []string{"kernel", "initrd"} {
		if f := flags.Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return fmt.Errorf("--%s is empty", name)
		}
	}
	for _, name := range []string{"initrd", "cmdline", "reuse-cmdline"} {
		if flags.Changed(name) && !flags.Changed("kernel") {
			return fmt.Errorf("--%s needs --kernel", name)
		}
	}
	written := flags.Changed("cmdline")
	l.given = written || l.reuse
	switch {
	case written && l.reuse:
		return errors.New("--cmdline and --reuse-cmdline exclude each other")
	case l.reuse:
		l.text, err = h.cmdline()
	}
	return err
}
