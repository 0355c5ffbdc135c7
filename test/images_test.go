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

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM) // until the process ends
	go func() {
		<-ctx.Done()
		building.Lock() // what was being built has ended
		os.Exit(1)
	}()
	tidy, err := prepare(ctx)
	if err == nil {
		err = machines.takeOver()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the test bed:", err)
		os.Exit(1)
	}
	status := m.Run()
	tidy()
	os.Exit(status)
}

// prepare builds the kernel, and what is to be on the images. The caller calls tidy
// when there are no more images to build.
func prepare(ctx context.Context) (tidy func(), err error) {
	if *deb == "" {
		return nil, errors.New("no package to test: run \"make test-vm\", or give -deb")
	}
	building.Lock()
	defer building.Unlock()
	builder, err := machine.NewBuilder(ctx, progress.New(os.Stderr))
	if err != nil {
		return nil, err
	}
	images.kernel = builder.Kernel
	examples, err := machine.Examples(ctx, "..")
	if err != nil {
		return nil, err
	}
	files := map[string]string{guestDeb: *deb}
	for _, name := range []string{"guest", "guest.service", "luo", "luosession.sh", "luosession.service"} {
		files[machine.GuestPrograms+name] = filepath.Join(examples, name)
	}
	none := func(context.Context) (map[string]string, error) { return nil, nil }
	images.with = lazily(ctx, builder, files, none)
	images.oldest = lazily(ctx, builder.Bookworm(), files, builder.Kernels)
	images.sid = lazily(ctx, builder.Sid(), files, none)
	return func() { os.RemoveAll(examples) }, nil
}

// building is held by who builds an image: each takes all processors that there are.
var building sync.Mutex

// lazily returns an image with files, and with more that are to be built first.
func lazily(ctx context.Context, builder *machine.Builder, files map[string]string, more func(context.Context) (map[string]string, error)) image {
	programs := machine.Programs("storesvc", "sessionsvc", "luoconform", "atstep", "impostor")
	return sync.OnceValues(func() (string, error) {
		building.Lock()
		defer building.Unlock()
		built, err := more(ctx)
		if err != nil {
			return "", err
		}
		all := maps.Clone(files)
		maps.Copy(all, built)
		return builder.Image(ctx, *deb, programs, all)
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
