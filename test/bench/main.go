// SPDX-License-Identifier: Apache-2.0

// Command bench measures, in the VM, what a live update takes: with fdbridge on
// systemd 257 and on 262, with what systemd 262 does alone, and in a plain loop of
// system calls that does nothing but preserve as many files. It is run by make bench
// with the path of the package to measure, prints a table of medians and one of their
// ratios, and writes them to a file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
	"github.com/fdbridge/fdbridge/test/machine"
)

var (
	runs   = flag.Int("runs", 3, "through how many updates each system takes each load; the medians are printed")
	least  = flag.Int("least", 0, "the smallest number of units to measure")
	most   = flag.Int("most", 1000, "the greatest number of units to measure")
	output = flag.String("o", "bench.md", "the file to write the tables to, too")
)

// memory is the machines', in MiB: a thousand units have a process each, and with fdbridge
// as many more while they start.
const memory = 8192

// system is what carries a load.
type system struct {
	name, image string
	alone       bool // without fdbridge
}

func main() {
	flag.Parse()
	if flag.NArg() != 1 || *runs < 1 {
		fmt.Fprintln(os.Stderr, "usage: bench [-runs N] [-least N] [-most N] [-o FILE] PACKAGE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM) // builds and machines end with it
	defer stop()
	if err := run(ctx, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, deb string) (err error) {
	log := progress.New(os.Stderr)
	builder, err := machine.NewBuilder(ctx, log)
	if err != nil {
		return err
	}
	systems, err := build(ctx, builder, deb)
	if err != nil {
		return err
	}
	file, err := os.Create(*output)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	out := io.MultiWriter(os.Stdout, file)
	config := vm.Config{Name: "bench", Kernel: builder.Kernel, Memory: memory, Log: log}
	of, failed := tabulate(ctx, config, systems, out)
	fmt.Fprint(out, legend(), ratios(systems, of))
	config.Image = systems[0].image
	text, err := count(ctx, config)
	fmt.Fprint(out, text)
	return errors.Join(failed, err)
}

// tabulate measures the loads on all systems and writes each row as soon as it is there. A
// load that cannot be measured does not keep the others from it.
func tabulate(ctx context.Context, config vm.Config, systems []system, out io.Writer) (of map[measured]figures, failed error) {
	of = map[measured]figures{}
	fmt.Fprint(out, tableHeader())
	for _, l := range loads {
		for _, s := range systems {
			if l.units < *least || l.units > *most || s.alone && l.prepare || ctx.Err() != nil {
				continue
			}
			f, err := repeated(ctx, config, l, s)
			if err != nil {
				config.Log.Printf("%v with %s: %v", l, s.name, err)
				failed = errors.Join(failed, fmt.Errorf("%v with %s could not be measured", l, s.name))
				fmt.Fprint(out, failedRow(l, s, err))
				continue
			}
			of[measured{l, s.name}] = f
			fmt.Fprint(out, f.row(l, s))
		}
	}
	return of, failed
}

// build builds the images of the systems; that which has what is counted comes first.
func build(ctx context.Context, builder *machine.Builder, deb string) (systems []system, err error) {
	for _, s := range []struct {
		name    string
		builder *machine.Builder
		deb     string
	}{
		{"fdbridge, systemd 257", builder, deb},
		{"fdbridge, systemd 262", builder.Sid(), deb},
		{"systemd 262 alone", builder.Sid(), ""},
	} {
		image, err := s.builder.Image(ctx, s.deb, machine.Programs("benchsvc"), nil)
		if err != nil {
			return nil, err
		}
		systems = append(systems, system{name: s.name, image: image, alone: s.deb == ""})
	}
	return systems, nil
}
