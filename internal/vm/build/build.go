// SPDX-License-Identifier: Apache-2.0

// Package build makes what the virtual machines boot, from Debian's packages
// and the inputs in contrib/vm: a kernel, a root file system, a disk image. All
// of it stays in the cache. It must run as root, and needs the packages that
// contrib/vm/deps installs.
package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fdbridge/fdbridge/internal/vm/cache"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

// Builder makes artefacts. Its methods may be called by several processes at
// once: they wait for each other.
type Builder struct {
	Cache  cache.Cache
	Module string // root of the Go module, in which contrib/vm is
	Log    *progress.Log

	// run runs a command whose output goes to the file log; output runs a quick
	// one and returns its standard output. Both are replaced in tests.
	run    func(ctx context.Context, log string, cmd *exec.Cmd) error
	output func(cmd *exec.Cmd) (string, error)

	linking sync.Mutex
	linked  map[string]string // the programs, by package
}

// New returns a Builder for the module that the working directory is in and
// the cache of this user.
func New(log *progress.Log) (*Builder, error) {
	store, err := cache.Default()
	if err != nil {
		return nil, err
	}
	module, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	return &Builder{Cache: store, Module: module, Log: log, run: log.Run, output: output}, nil
}

// output runs cmd; its error has what the command wrote to standard error.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// moduleRoot is the nearest directory above with a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("the working directory is not inside the project")
		}
	}
}

func (b *Builder) input(name string) string { return filepath.Join(b.Module, "contrib/vm", name) }

// lines reads an input file of one word or setting a line, without comments.
func (b *Builder) lines(name string) ([]string, error) {
	data, err := os.ReadFile(b.input(name))
	if err != nil {
		return nil, fmt.Errorf("read a vm input: %w", err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines, nil
}
