// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/vm/progress"
	"github.com/fdbridge/fdbridge/test/machine"
)

var deb = flag.String("deb", "", "the fdbridge package to install in the VM")

// guestDeb is where the package is in the guest, to be installed again.
const guestDeb = "/root/fdbridge.deb"

// image returns the path of a disk image. The first scenario that wants it builds it,
// while another one runs.
type image func() (path string, err error)

// images are what the machines boot: with systemd 257, with systemd 254 and the other
// kernels besides, and with systemd 262. Users have any of these versions: what depends
// on systemd's ways goes through all of them, and the other scenarios are spread over
// the first two.
var images struct {
	kernel            string
	with, oldest, sid image
}

// temporary is a directory that goes when the process ends.
var temporary string

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM) // until the process ends
	go func() {
		<-ctx.Done()
		end(1)
	}()
	err := prepare(ctx)
	if err == nil {
		err = machines.takeOver()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the test bed:", err)
		end(1)
	}
	end(m.Run())
}

// end ends the process. What was being built has ended then.
func end(status int) {
	building.Lock()
	os.RemoveAll(temporary)
	os.Exit(status)
}

// prepare builds the kernels, before anything runs that has to be up within some time,
// and what is to be on the images.
func prepare(ctx context.Context) error {
	if *deb == "" {
		return errors.New("no package to test: run \"make test-vm\", or give -deb")
	}
	building.Lock()
	defer building.Unlock()
	builder, err := machine.NewBuilder(ctx, progress.New(os.Stderr))
	if err != nil {
		return err
	}
	images.kernel = builder.Kernel
	kernels, err := builder.Kernels(ctx)
	if err != nil {
		return err
	}
	if temporary, err = os.MkdirTemp("", "fdbridge-test-"); err != nil {
		return err
	}
	if err := machine.Examples(ctx, "..", temporary); err != nil {
		return err
	}
	files := map[string]string{guestDeb: *deb}
	for _, name := range []string{"guest", "guest.service", "luo", "luosession.sh", "luosession.service"} {
		files[machine.GuestPrograms+name] = filepath.Join(temporary, name)
	}
	images.with = lazily(ctx, builder, files)
	images.sid = lazily(ctx, builder.Sid(), files)
	maps.Copy(kernels, files)
	images.oldest = lazily(ctx, builder.Bookworm(), kernels)
	return nil
}

// building is held by who builds an image: each takes all processors that there are.
var building sync.Mutex

// lazily returns an image with files.
func lazily(ctx context.Context, builder *machine.Builder, files map[string]string) image {
	programs := machine.Programs("storesvc", "sessionsvc", "luoconform", "storeconform", "atstep", "impostor")
	return sync.OnceValues(func() (string, error) {
		building.Lock()
		defer building.Unlock()
		return builder.Image(ctx, *deb, programs, files)
	})
}

// common is the image of scenarios that make test runs with systemd 254, where they take
// less time, and make soak, which runs them in full, with 257.
func common() image {
	if thorough {
		return images.with
	}
	return images.oldest
}
