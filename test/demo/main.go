// SPDX-License-Identifier: Apache-2.0

// Command demo shows the main job: a service that counts requests in a memfd,
// before and after the kernel under it was replaced. It is run by make demo
// with the path of the package to show.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
	"github.com/fdbridge/fdbridge/test/machine"
)

// timeout bounds the demonstration, but for the making of the test bed.
const timeout = 5 * time.Minute

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo PACKAGE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM) // builds end with it
	defer stop()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, deb string) error {
	m, err := start(ctx, deb)
	if err != nil {
		return err
	}
	defer m.Kill()
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	before, err := look(ctx, m, 42)
	if err != nil {
		return err
	}
	last := time.Now()
	if err := m.Kexec(ctx); err != nil {
		return err
	}
	after, err := look(ctx, m, 1)
	if err != nil {
		return fmt.Errorf("%w; the console log is in %s", err, m.Dir())
	}
	if err := show(before, after, after.answered.Sub(last)); err != nil {
		return err
	}
	return os.RemoveAll(m.Dir())
}

// start boots a machine in which the example service is installed and enabled.
func start(ctx context.Context, deb string) (*vm.Machine, error) {
	log := progress.New(os.Stderr)
	builder, err := machine.NewBuilder(ctx, log)
	if err != nil {
		return nil, err
	}
	const example = "contrib/examples/counter"
	image, err := builder.Image(ctx, deb,
		map[string]string{"/usr/local/bin/counter": "github.com/fdbridge/fdbridge/" + example},
		map[string]string{"/etc/systemd/system/counter.service": example + "/counter.service"})
	if err != nil {
		return nil, err
	}
	m, err := vm.Start(ctx, vm.Config{Name: "demo", Kernel: builder.Kernel, Image: image, Log: log})
	if err != nil {
		return nil, err
	}
	if err = m.WaitBoot(ctx); err == nil {
		_, err = m.Run(ctx, "systemctl", "enable", "--now", "counter.service")
	}
	if err != nil {
		m.Kill()
		return nil, err
	}
	return m, nil
}

// state is what a column of the picture shows.
type state struct {
	release, bootID, number string
	count, fds              string
	answered                time.Time // when the service answered the last request
}

// look makes requests and reads the state of things then.
func look(ctx context.Context, m *vm.Machine, requests int) (s state, err error) {
	r, err := m.Shell(ctx, fmt.Sprintf(`systemctl start counter.service
for i in $(seq %d); do count=$(/usr/local/bin/counter ask); done; echo $count`, requests))
	if err != nil {
		return s, err
	}
	s.count, s.answered = strings.TrimSpace(r.Stdout), time.Now()
	if r, err = m.Run(ctx, "fdbridgectl", "status", "--json"); err != nil {
		return s, err
	}
	var status struct {
		Kernel struct {
			Release string
			BootID  string  `json:"boot_id"`
			Number  *uint64 `json:"live_update_number"`
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil {
		return s, err
	}
	s.release, s.bootID, s.number = status.Kernel.Release, status.Kernel.BootID, "not known"
	if n := status.Kernel.Number; n != nil {
		s.number = fmt.Sprint(*n)
	}
	r, err = m.Shell(ctx, "tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID counter.service)/environ | sed -n s/^LISTEN_FDNAMES=//p; systemctl show -P NFileDescriptorStore counter.service")
	fields := strings.Fields(r.Stdout)
	if len(fields) == 1 { // started without fds
		fields = append([]string{"none"}, fields...)
	}
	s.fds = strings.Join(fields, " passed, in the store: ")
	return s, err
}

func show(before, after state, away time.Duration) error {
	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, "\tbefore\tafter\n")
	for _, row := range [][3]string{
		{"kernel", before.release, after.release},
		{"boot id", before.bootID, after.bootID},
		{"live-update number", before.number, after.number},
		{"requests counted", before.count, after.count},
		{"fds", before.fds, after.fds},
	} {
		fmt.Fprintf(table, "%s\t%s\t%s\n", row[0], row[1], row[2])
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nThe service was away for %.1f s, from its last answer in the old kernel to its first in the new one.\n", away.Seconds())
	return nil
}
