// SPDX-License-Identifier: Apache-2.0

// Command atstep runs a program in its own place, as exec does, and kills or
// holds it right before one of its steps.
//
//	atstep DIR PROGRAM [ARG...]
//
// A step is an ioctl for /dev/liveupdate or a session, a message to the service
// manager or over fdbridge's socket, or the end of the program; and EBUSY, which is after
// the program has found the device open elsewhere. strace(1) can
// do the like, but counts the calls of each thread by itself, and a Go program
// makes its calls on any.
//
// DIR/steps says in its first line what is to be done: "7 kill" kills the
// program before its seventh step, "7 hold" lets it go no further until
// DIR/held, which then names the step, is removed. "+7" counts from the message
// READY=1, and "+FINISH" is the first step from there on that begins so. When that has been done the line is removed, so that the next run
// takes the next one, and DIR/log has one more line that names the step. Where
// there is no line, the program just runs.
//
// That a session was retrieved and that it is in fdbridged's store is one step:
// what is killed in between loses it, and nothing but haste can be done about
// that.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tracing is the first argument of the process that traces the program, and starting that
// of its parent.
const (
	tracing  = "-trace"
	starting = "-start"
)

// The kernel knows a tracer, and a process that becomes another one, by its
// thread: that of main is the process's first.
func init() { runtime.LockOSThread() }

func main() {
	err := errors.New("usage: atstep DIR PROGRAM [ARG...]")
	switch {
	case len(os.Args) == 4 && os.Args[1] == tracing:
		err = trace(os.Args[2], os.Args[3])
	case len(os.Args) == 4 && os.Args[1] == starting:
		tracer := exec.Command("/proc/self/exe", tracing, os.Args[2], os.Args[3])
		tracer.Stdout, tracer.Stderr = os.Stdout, os.Stderr
		err = tracer.Start()
	case len(os.Args) > 2:
		err = run(os.Args[1], os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "atstep:", err)
		os.Exit(1)
	}
}

// run becomes the program, with this process's own name as its zeroth argument.
func run(dir string, argv []string) error {
	p, err := readPlan(dir)
	if err == nil && p != nil {
		err = startTracer(dir)
	}
	if err != nil {
		return err
	}
	program := argv[0]
	argv[0] = os.Args[0]
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, argv, os.Environ()))
}

// startTracer starts a process that traces this one, and waits until it does. It is no
// child of this process's, which would not wait for its end.
func startTracer(dir string) error {
	starter := exec.Command("/proc/self/exe", starting, dir, strconv.Itoa(os.Getpid()))
	starter.Stderr = os.Stderr
	out, err := starter.StdoutPipe()
	if err == nil {
		err = starter.Start()
	}
	if err != nil {
		return err
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the tracer did not begin: %w", err)
	}
	return starter.Wait()
}

// plan is a line of DIR/steps.
type plan struct {
	dir   string
	rest  string // the lines after it
	at    int    // 0 when name says it
	name  string // how the step begins
	ready bool   // count from READY=1
	hold  bool
}

// readPlan returns what is to be done, nil for nothing.
func readPlan(dir string) (*plan, error) {
	data, err := os.ReadFile(filepath.Join(dir, "steps"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return nil, nil
	}
	line, rest, _ := strings.Cut(string(data), "\n")
	number, what, _ := strings.Cut(line, " ")
	p := &plan{dir: dir, rest: rest, ready: strings.HasPrefix(number, "+"), hold: what == "hold"}
	if err == nil && strings.Trim(number, "+0123456789") != "" {
		p.name = strings.TrimPrefix(number, "+")
	} else if err == nil {
		p.at, err = strconv.Atoi(number)
	}
	if err == nil && what != "kill" && what != "hold" {
		err = fmt.Errorf("what to do is %q", what)
	}
	if err != nil {
		return nil, fmt.Errorf("read the steps in %s: %w", dir, err)
	}
	return p, nil
}

// done notes that the plan has come to its step.
func (p *plan) done(step string) error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(log, step)
		err = errors.Join(err, log.Close())
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(p.dir, "new"), []byte(p.rest), 0o644)
	}
	if err == nil {
		err = os.Rename(filepath.Join(p.dir, "new"), filepath.Join(p.dir, "steps"))
	}
	return err
}

// trace follows the process of that id, which is about to become the program,
// until its end or until the plan is carried out.
func trace(dir, id string) error {
	// It must not hold what the program was given; and it ends when that does.
	if err := unix.CloseRange(3, ^uint(0)>>32, 0); err != nil {
		return err
	}
	signalIgnore()
	pid, err := strconv.Atoi(id)
	if err != nil {
		return err
	}
	p, err := readPlan(dir)
	if err != nil || p == nil {
		return errors.Join(err, errors.New("there is no plan"))
	}
	if err := ptrace(unix.PTRACE_SEIZE, pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEEXEC); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if _, err := os.Stdout.Write([]byte{1}); err != nil {
		return err
	}
	return (&tracer{plan: p, pid: pid, calls: map[int]uint64{}}).follow()
}
