// SPDX-License-Identifier: Apache-2.0

// Command vmctl makes and boots the test bed's virtual machines for the Makefile and
// for a person. What it prints on stdout is the path of what it made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/internal/vm/build"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

const usage = `usage: vmctl COMMAND
  kernel               build the kernel
  root                 build the root file system's tarball
  image [--deb=FILE]   build the disk image, with the package installed
  boot [--deb=FILE]    boot it with the serial console on this terminal;
                       leave with "poweroff" or Ctrl-a x
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vmctl:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	deb := flags.String("deb", "", "Debian package to install in the image")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	log := progress.New(os.Stderr)
	b, err := build.New(log)
	if err != nil {
		return err
	}
	switch args[0] {
	case "kernel":
		return show(b.Kernel(ctx, build.KernelSeries))
	case "root":
		return show(b.Root(ctx, build.Trixie))
	}
	kernel, err := b.Kernel(ctx, build.KernelSeries)
	if err != nil {
		return err
	}
	image, err := b.Image(ctx, build.Image{Kernel: kernel, Deb: *deb})
	switch {
	case err != nil:
		return err
	case args[0] == "image":
		return show(image, nil)
	case args[0] == "boot":
		return boot(ctx, vm.Config{Kernel: kernel, Image: image, KernelArgs: []string{"login"}, Log: log})
	}
	return errors.New(usage)
}

func show(path string, err error) error {
	if err == nil {
		fmt.Println(path)
	}
	return err
}

// boot gives the machine the terminal until it ends. The terminal is put back
// as it was, also when QEMU did not get to do so.
func boot(ctx context.Context, cfg vm.Config) error {
	cfg.Name, cfg.Interactive, cfg.AllowReboot = "vm", true, true
	m, err := vm.Start(ctx, cfg)
	if err != nil {
		return err
	}
	err = m.WaitQuit(ctx)
	sane := exec.Command("stty", "sane")
	sane.Stdin = os.Stdin
	_ = sane.Run() // not a terminal: nothing to put back
	return errors.Join(err, os.RemoveAll(m.Dir()))
}
