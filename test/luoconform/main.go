// SPDX-License-Identifier: Apache-2.0

// Command luoconform runs the conformance suite of package sessiontest against
// the real kernel: "luoconform before" up to the kexec, which it waits for with
// the sessions open, and "luoconform after" in the kernel that follows.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/session/sessiontest"
	"github.com/fdbridge/fdbridge/units/notify"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: luoconform before|after")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "before":
		before()
	case "after":
		run(append(sessiontest.After(), sessiontest.Before()...))
	}
}

// run runs checks; the exit status says whether all passed.
func run(checks []sessiontest.Check) { conform.Main(session.Kernel(session.System{}), checks) }

// before tells the service manager that it is ready when all checks have
// passed, and stays, because the sessions last as long as somebody has them.
func before() {
	var held []*session.Session
	prepare := sessiontest.Check{Name: "sessions are prepared", Run: func(t sessiontest.T, k session.Kernel) {
		held = sessiontest.Prepare(t, k)
	}}
	run(append(append(sessiontest.Before(), sessiontest.Real()...), prepare))
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err == nil {
		err = socket.Ready(fmt.Sprintf("%d sessions", len(held)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	runtime.KeepAlive(held) // what nobody can reach any more is closed
}
