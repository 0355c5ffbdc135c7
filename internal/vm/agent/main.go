// SPDX-License-Identifier: Apache-2.0

// Command agent is the VM harness's hand in the guest: it runs commands and moves files
// for the host, asked over a virtio-serial port. It knows nothing of fdbridge.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// portWait bounds the wait for the kernel to find the port.
const portWait = 10 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, cancel := context.WithTimeout(context.Background(), portWait)
	defer cancel()
	port, err := openPort(ctx)
	if err != nil {
		return err
	}
	defer port.Close()
	hello, err := greeting()
	if err != nil {
		return err
	}
	return serve(port, hello)
}

// greeting makes the hello of this start of the agent.
func greeting() (wire.Hello, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return wire.Hello{}, err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return wire.Hello{}, err
	}
	nonce := make([]byte, 8)
	_, _ = rand.Read(nonce) // never fails
	return wire.Hello{
		Nonce:   hex.EncodeToString(nonce),
		BootID:  strings.TrimSpace(string(bootID)),
		Release: strings.TrimSpace(string(release)),
	}, nil
}

// openPort finds the port by the name that the virtio_console driver shows in
// sysfs, since /dev/virtio-ports is udev's work and udev may not run yet.
func openPort(ctx context.Context) (*os.File, error) {
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, file := range names {
			name, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(name)) == wire.PortName {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no virtio port named %s: %w", wire.PortName, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serve answers requests until the stream ends. Each runs on its own, so that
// a long command does not hold up the others.
func serve(stream io.ReadWriter, hello wire.Hello) error {
	conn := wire.NewConn(stream)
	if err := conn.Write(wire.Message{Hello: &hello}); err != nil {
		return err
	}
	for {
		m, err := conn.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.Request == nil || m.Request.Nonce != hello.Nonce {
			continue // meant for an agent before this one
		}
		go func() {
			reply := handle(m.Request)
			reply.Nonce, reply.ID = m.Request.Nonce, m.Request.ID
			if err := conn.Write(wire.Message{Reply: &reply}); err != nil {
				fmt.Fprintln(os.Stderr, "agent:", err)
			}
		}()
	}
}
