// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// The scripts have, besides what testscript offers:
//
//	fdbridged        starts an fdbridged on the file "socket", which answers a
//	                 request with the packets in the file of the request's name
//	                 and hangs up, a document's with the file of its unit's name
//	                 or "index"; it ends with the script
//	deaf-fdbridged   starts one that hangs up on everybody
//	dead-fdbridged   leaves a socket that nobody listens on
//	[!] fdbridgectl  runs the command with the files "socket" and "device", on the
//	                 host of testHost
//	exits N ARG...   does so, and demands the exit status N
//	on-terminal N    does so on a terminal of N columns with colours
//	[!] as-nobody    does so as a user whom "socket" is closed to
//	fits FILE        demands that no line has more than 80 columns, but for colours
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fdbridged":      startDaemon(answer),
			"deaf-fdbridged": startDaemon(func(*wire.Conn, string) error { return nil }),
			"dead-fdbridged": leaveSocket,
			"fdbridgectl":    runCommand,
			"as-nobody":      runAsNobody,
			"exits":          exits,
			"on-terminal":    runOnTerminal,
			"fits":           fits,
		},
	})
}

func runCommand(ts *testscript.TestScript, neg bool, args []string) {
	checkStatus(ts, neg, runWith(ts, screen{}, args))
}

func runOnTerminal(ts *testscript.TestScript, neg bool, args []string) {
	columns, err := strconv.Atoi(args[0])
	ts.Check(err)
	checkStatus(ts, neg, runWith(ts, screen{columns: columns, colours: true}, args[1:]))
}

// runAsNobody runs the command with nobody's access to files, whoever runs the
// test.
func runAsNobody(ts *testscript.TestScript, neg bool, args []string) {
	status := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its user
		_ = unix.Setfsuid(65534)
		status <- runWith(ts, screen{}, args)
	}()
	checkStatus(ts, neg, <-status)
}

func runWith(ts *testscript.TestScript, s screen, args []string) int {
	d := daemon{socket: ts.MkAbs("socket"), bus: ts.MkAbs("bus"), device: ts.MkAbs("device")}
	return run(command(d, testHost(ts), s), args, ts.Stdout(), ts.Stderr())
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	if status := strconv.Itoa(runWith(ts, screen{}, args[1:])); status != args[0] {
		ts.Fatalf("exit status %s, want %s", status, args[0])
	}
}

// testHost is a host on which a check finds what is in the file "found", and
// which prints what is done to it.
func testHost(ts *testscript.TestScript) host {
	say := func(format string, args ...any) error {
		_, err := fmt.Fprintf(ts.Stdout(), format+"\n", args...)
		return err
	}
	h := host{cmdline: func() (string, error) { return "running cmdline", nil }}
	h.Check = func(_ context.Context, target *check.Target) (*check.Result, error) {
		data, err := os.ReadFile(ts.MkAbs("found"))
		if err != nil {
			return nil, err
		}
		var found check.Result
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&found); err != nil {
			return nil, err
		}
		if target != nil {
			cmdline := "its own command line"
			if target.Cmdline != nil {
				cmdline = strconv.Quote(*target.Cmdline)
			}
			err = say("check %s of %d bytes with %s", filepath.Base(target.Name), target.Size, cmdline)
		}
		return &found, err
	}
	h.features = func(context.Context) (*check.Features, error) {
		data, err := os.ReadFile(ts.MkAbs("features"))
		if err != nil {
			return nil, err
		}
		f := &check.Features{}
		return f, json.Unmarshal(data, f)
	}
	h.prepare = func(context.Context) (string, error) {
		if _, err := os.Stat(ts.MkAbs("unprepared")); err == nil {
			return "", errors.New("it is\nbroken")
		}
		return "Prepared it.", say("prepare")
	}
	h.abort = func(ctx context.Context) error { return errors.Join(ctx.Err(), say("abort")) }
	h.Load = func(kernel, initrd *os.File, cmdline string) error {
		return say("load with an initrd %v and %q", initrd != nil, cmdline)
	}
	h.Start = func() error {
		if _, err := os.Stat(ts.MkAbs("inhibited")); err == nil {
			return errors.New("systemctl kexec: exit status 1")
		}
		return say("start")
	}
	return h
}

func checkStatus(ts *testscript.TestScript, neg bool, status int) {
	want := 0
	if neg {
		want = 1
	}
	if status != want {
		ts.Fatalf("exit status %d, want %d", status, want)
	}
}

func startDaemon(answer func(*wire.Conn, string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, _ []string) {
		listener, err := wire.Listen(ts.MkAbs("socket"))
		ts.Check(err)
		dir, done := ts.MkAbs("."), make(chan error, 1)
		go func() {
			var err error
			for err == nil {
				var conn *wire.Conn
				if conn, err = listener.Accept(); err == nil {
					err = errors.Join(answer(conn, dir), conn.Close())
				}
			}
			done <- err
		}()
		ts.Defer(func() {
			_ = listener.Close()
			if err := <-done; !errors.Is(err, os.ErrClosed) {
				ts.Fatalf("fdbridged: %v", err)
			}
		})
	}
}

func answer(conn *wire.Conn, dir string) error {
	var request wire.Request
	if _, err := conn.Receive(&request); err != nil {
		return err
	}
	// All at once: the script may change the file as soon as it has its answer.
	packets, err := os.ReadFile(filepath.Join(dir, request.Op))
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(packets))
	decoder.DisallowUnknownFields()
	for {
		var packet wire.Answer
		if err := decoder.Decode(&packet); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		document, err := documentOf(&packet, dir)
		if err == nil {
			err = errors.Join(conn.Send(packet, document), document.Close())
		}
		if err != nil {
			return err
		}
	}
}

// documentOf opens the file that stands for a document, which has the name of its
// unit, or "index".
func documentOf(packet *wire.Answer, dir string) (*fd.FD, error) {
	if packet.Document == nil {
		return nil, nil
	}
	raw, err := unix.Open(filepath.Join(dir, cmp.Or(packet.Document.Unit, "index")), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return fd.New(raw), nil
}

func leaveSocket(ts *testscript.TestScript, _ bool, _ []string) {
	listener, err := wire.Listen(ts.MkAbs("socket"))
	ts.Check(err)
	ts.Check(listener.Close())
}

func fits(ts *testscript.TestScript, _ bool, args []string) {
	text := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(ts.ReadFile(args[0]), "")
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			ts.Fatalf("%d columns: %s", n, line)
		}
	}
}

func TestSizesAreWrittenAsSystemdWritesThem(t *testing.T) {
	const k, m, g = 1 << 10, 1 << 20, 1 << 30
	for n, want := range map[int64]string{
		0: "0B", 100: "100B", k - 1: "1023B",
		k: "1K", 4 * k: "4K", k + 102: "1K", k + 103: "1.1K", m - 1: "1023.9K",
		m: "1M", 64 * m: "64M", m + 103*k: "1.1M", g - 1: "1023.9M",
		// A little above 1.1M, which systemd computes in whole KiB.
		m + 102*k + 900: "1M",
		g + g/2:         "1.5G", g << 10: "1T", g << 20: "1P", g << 30: "1E", 1<<63 - 1: "7.9E",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, asJSON := range []bool{false, true} {
		err := output(full, asJSON, []wire.Unit{}, func() string { return (&view{}).unitsText(nil) })
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("output, JSON %v: %v, want ENOSPC", asJSON, err)
		}
	}
}

// As by nohup(1), and by a shell that traps all of them with nothing.
func TestWhoIsStartedWithoutTheSignalsIsNotInterruptedByOthers(t *testing.T) {
	all := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}
	signal.Ignore(all...)
	t.Cleanup(func() { signal.Reset(all...) })
	ctx, stop := interruptible(t.Context())
	defer stop()
	seen := make(chan os.Signal, 1)
	signal.Notify(seen, unix.SIGCHLD)
	defer signal.Stop(seen)
	for range 10 { // one is handed to all before the next is
		if err := unix.Kill(os.Getpid(), unix.SIGCHLD); err != nil {
			t.Fatal(err)
		}
		<-seen
	}
	if ctx.Err() != nil {
		t.Errorf("it was interrupted: %v", context.Cause(ctx))
	}
}
