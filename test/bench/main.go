// SPDX-License-Identifier: Apache-2.0

// Command bench measures, in the VM, what a live update takes: with fdbridge on
// systemd 257 and on 262, with what systemd 262 does alone, and in a plain loop of
// system calls that does nothing but preserve as many files. It is run by make bench
// with the path of the package to measure, prints a table, and writes it to a file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
	"github.com/fdbridge/fdbridge/test/machine"
)

var (
	runs   = flag.Int("runs", 3, "how often each load is measured on each system; the medians are printed")
	least  = flag.Int("least", 0, "the smallest number of units to measure")
	most   = flag.Int("most", 200, "the greatest number of units to measure")
	output = flag.String("o", "bench.md", "the file to write the table to, too")
)

// load is what there is to carry.
type load struct {
	units, files, size int
	sealed             bool
	prepare            bool // with fdbridgectl prepare before
}

const (
	page = 4 << 10
	mib  = 1 << 20
)

// loads are measured one after the other, each on machines of its own.
var loads = []load{
	{units: 1, files: 10, size: page},
	{units: 10, files: 10, size: page},
	{units: 100, files: 10, size: page},
	{units: 200, files: 20, size: page},
	{units: 1000, files: 10, size: page},
	{units: 1, files: 100, size: page},
	{units: 1, files: 1000, size: page},
	{units: 1, files: 5000, size: page},
	{units: 1, files: 1, size: 1024 * mib, sealed: true},
	{units: 1, files: 1, size: 1024 * mib, sealed: true, prepare: true},
	{units: 1, files: 8, size: 128 * mib, sealed: true},
	{units: 1, files: 8, size: 128 * mib, sealed: true, prepare: true},
}

// counted is the load whose system calls are counted.
var counted = load{units: 20, files: 20, size: page}

func (l load) String() string {
	text := fmt.Sprintf("%d x %d x %d KiB", l.units, l.files, l.size>>10)
	if l.prepare {
		text += ", prepared"
	}
	return text
}

// memfds are the files of a unit as benchsvc is told of them.
func (l load) memfds() string {
	text := fmt.Sprint(l.files, " ", l.size)
	if l.sealed {
		text += " sealed"
	}
	return text
}

// system is what carries a load.
type system struct {
	name, image string
	alone       bool // without fdbridge
}

func main() {
	flag.Parse()
	if flag.NArg() != 1 {
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
	config := vm.Config{Name: "bench", Kernel: builder.Kernel, Memory: 4096, Log: log}
	fmt.Fprint(out, header)
	for _, l := range loads {
		if l.units < *least || l.units > *most {
			continue
		}
		for _, s := range systems {
			if s.alone && l.prepare {
				continue
			}
			f, err := repeated(ctx, config, l, s)
			if err != nil {
				return fmt.Errorf("%v with %s: %w", l, s.name, err)
			}
			fmt.Fprintln(out, f.row(l, s))
		}
	}
	fmt.Fprint(out, legend)
	config.Image = systems[0].image
	text, err := count(ctx, config)
	fmt.Fprint(out, text)
	return err
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

const header = `| units x memfds x size | with | loop | ready | own | down | start | first | last | serve |
|---|---|---|---|---|---|---|---|---|---|
`

const legend = `
loop: a plain loop that does nothing but put as many memfds into a session for each unit
ready: all services stopped (shutdown.target) to the sessions' being complete
own: what of ready nothing else is done in
down: all services stopped to the start of the next kernel
start: PID 1's start to the first unit's beginning to start
first, last: PID 1's start to the start of the first and the last main process
serve: the peak of fdbridged's resident memory

`

// row is a line of the table.
func (f *figures) row(l load, s system) string {
	serve := ""
	if !s.alone {
		serve = fmt.Sprintf("%.1f MB", float64(f.serve)/1e6)
	}
	return fmt.Sprintf("| %v | %s | %.0f ms | %.0f ms | %.0f ms | %.2f s | %.2f s | %.2f s | %.2f s | %s |", l, s.name,
		ms(f.loop), ms(f.ready), ms(f.own), f.down.Seconds(), f.start.Seconds(), f.first.Seconds(), f.last.Seconds(), serve)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
