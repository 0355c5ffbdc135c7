// SPDX-License-Identifier: Apache-2.0

// Command storesvc is the service that the scenarios in the VM run: it keeps
// files of a given kind, size and name in its fd store, and reports what it
// finds in $LISTEN_FDS when it starts.
//
//	storesvc [-on-stop] [FILE...]
//
// The report is written to /run/storesvc, under the name of the unit, which is
// expected in $UNIT.
//
// Each FILE is NAME,KIND[,SIZE[,POSITION[,SEALS]]], KIND one of memfd,
// noexec (a memfd with F_SEAL_EXEC), readonly (one that only its owner may read, opened so), session (a
// live-update session, which has the memfd under token 1), pipe and socket; a NAME of "-" stores without a name. NAME,again,UNIT/OTHER[,POSITION]
// opens a memfd anew that was stored as OTHER by this unit or another one, then
// for reading only. The files are made when the service finds no fds of its own:
// at the start, or with -on-stop when it is told to stop. Names may have a comma
// written as %2C and a percent sign as %25.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/test/contents"
	"github.com/fdbridge/fdbridge/units/notify"
)

// Found is one fd of $LISTEN_FDS as the report has it.
type Found struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Size     int64  `json:"size"`
	Position int64  `json:"position"`
	Seals    int    `json:"seals"`
	Flags    int    `json:"flags"`
	Sum      string `json:"sum,omitempty"`
	Inode    uint64 `json:"inode"`
	// Mode, UID and GID are those of a memfd.
	Mode uint32 `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "storesvc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	onStop := len(args) > 0 && args[0] == "-on-stop"
	if onStop {
		args = args[1:]
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err != nil {
		return err
	}
	passed, err := notify.Listen()
	if err != nil {
		return err
	}
	own, err := report("/run/storesvc/"+os.Getenv("UNIT"), passed)
	if err != nil {
		return err
	}
	if own == 0 && !onStop {
		if err := store(socket, args); err != nil {
			return err
		}
	}
	if err := socket.Ready("running"); err != nil {
		return err
	}
	<-stop
	if onStop && own == 0 {
		return store(socket, args)
	}
	return nil
}

// report writes what was passed, as one JSON list, and counts what the service
// has stored itself: LUOSession= makes empty sessions for it.
func report(path string, passed []notify.Passed) (own int, err error) {
	found := []Found{}
	for _, p := range passed {
		f, err := look(p)
		if err != nil {
			return 0, fmt.Errorf("look at %q: %w", p.Name, err)
		}
		if found = append(found, f); f.Type != "session" {
			own++
		}
	}
	temporary := filepath.Join(filepath.Dir(path), ".new-"+strconv.Itoa(os.Getpid()))
	data, err := json.Marshal(found)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(temporary, data, 0o644)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	return own, err
}

// oLargefile is set or not by who opened a file, and means nothing on 64 bits.
const oLargefile = 0o100000

func look(p notify.Passed) (Found, error) {
	found := Found{Name: p.Name, Type: "memfd"}
	err := p.FD.Do(func(raw int) (err error) {
		var st unix.Stat_t
		if err := unix.Fstat(raw, &st); err != nil {
			return err
		}
		found.Size, found.Inode = st.Size, st.Ino
		if found.Flags, err = unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0); err != nil {
			return err
		}
		found.Flags &^= oLargefile
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO:
			found.Type = "pipe"
			return nil
		case unix.S_IFSOCK:
			found.Type = "socket"
			return nil
		case 0: // an anonymous inode
			found.Type = "session"
			return inside(&found, p.FD)
		}
		found.Mode, found.UID, found.GID = st.Mode, st.Uid, st.Gid
		if found.Position, err = unix.Seek(raw, 0, unix.SEEK_CUR); err != nil {
			return err
		}
		if found.Seals, err = unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); err != nil {
			return err
		}
		found.Sum, err = hash(raw)
		return err
	})
	return found, err
}

// inside looks at what is in a session that came through a live update.
func inside(found *Found, f *fd.FD) error {
	memfd, err := session.Adopt(session.System{}, f).RetrieveFD(sessionToken)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, session.ErrNoToken) {
		return nil // it has not come, or is empty
	}
	if err != nil {
		return err
	}
	return errors.Join(memfd.Do(func(raw int) (err error) {
		found.Sum, err = hash(raw)
		return err
	}), memfd.Close())
}

func hash(raw int) (string, error) {
	h, buffer := uint64(0), make([]byte, 256*contents.PageSize)
	for offset := int64(0); ; {
		n, err := unix.Pread(raw, buffer, offset)
		if err != nil {
			return "", err
		}
		if n == 0 {
			return contents.Sum(h), nil
		}
		h = contents.Hash(h, buffer[:n])
		offset += int64(n)
	}
}

// store makes the files and puts them into the fd store.
func store(socket *notify.Socket, files []string) error {
	for _, text := range files {
		if err := storeOne(socket, strings.Split(text, ",")); err != nil {
			return fmt.Errorf("store %q: %w", text, err)
		}
	}
	return socket.Barrier()
}

func storeOne(socket *notify.Socket, field []string) error {
	number := func(i int) (n int64) {
		if i < len(field) {
			n, _ = strconv.ParseInt(field[i], 0, 64)
		}
		return n
	}
	if len(field) < 2 {
		return fmt.Errorf("want NAME,KIND")
	}
	name, err := url.PathUnescape(field[0])
	if err != nil {
		return err
	}
	var f *fd.FD
	if field[1] == "again" && len(field) > 2 {
		f, err = again(socket, field[2], number(3))
	} else {
		f, err = create(field[1], name, number(2), number(3), int(number(4)))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if name == "-" {
		return socket.StoreUnnamed(f)
	}
	return socket.Store(name, f)
}

// create makes one file. A pipe or socket gets its other end stored nowhere,
// so it is kept open here until the process ends.
func create(kind, name string, size, position int64, seals int) (*fd.FD, error) {
	var pair [2]int
	switch kind {
	case "pipe":
		if err := unix.Pipe2(pair[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		return fd.New(pair[0]), nil
	case "socket":
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return fd.New(pair[0]), nil
	}
	flags, ok := map[string]int{"memfd": 0, "noexec": unix.MFD_NOEXEC_SEAL, "readonly": 0, "session": 0}[kind]
	if !ok {
		return nil, fmt.Errorf("no such kind: %s", kind)
	}
	raw, err := unix.MemfdCreate(memfdName(os.Getenv("UNIT"), name), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if err != nil {
		return nil, err
	}
	f := fd.New(raw)
	if err := fill(raw, name, size, seals); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if kind == "session" {
		defer f.Close()
		return enclose(f, name)
	}
	if kind == "readonly" {
		defer f.Close()
		if err := unix.Fchmod(raw, 0o400); err != nil {
			return nil, err
		}
		if raw, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return nil, err
		}
		f = fd.New(raw)
	}
	_, err = unix.Seek(raw, position, unix.SEEK_SET)
	return f, err
}

// sessionToken is where a session has its memfd.
const sessionToken = 1

// enclose makes a session that has a memfd.
func enclose(memfd *fd.FD, name string) (*fd.FD, error) {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	device, err := session.OpenWait(ctx, session.System{}, session.Path)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	s, err := device.Create(name)
	if err != nil {
		return nil, err
	}
	if err := s.Preserve(memfd, sessionToken); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s.FD(), nil
}

// memfdName is the name of the memfd itself, of 249 bytes at most.
func memfdName(unit, name string) string {
	full := unit + "/" + name
	return full[:min(len(full), 249)]
}

// again opens a memfd that PID 1 has stored.
func again(socket *notify.Socket, which string, position int64) (*fd.FD, error) {
	if err := socket.Barrier(); err != nil {
		return nil, err
	}
	flags := unix.O_RDONLY
	if strings.HasPrefix(which, os.Getenv("UNIT")+"/") {
		flags = unix.O_RDWR
	}
	links, err := filepath.Glob("/proc/1/fd/*")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if target, _ := os.Readlink(link); target != "/memfd:"+which+" (deleted)" {
			continue
		}
		raw, err := unix.Open(link, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := fd.New(raw)
		_, err = unix.Seek(raw, position, unix.SEEK_SET)
		return f, err
	}
	return nil, fmt.Errorf("PID 1 has no memfd %s", which)
}

// fill writes the file's contents, then seals it.
func fill(raw int, name string, size int64, seals int) error {
	var page [contents.PageSize]byte
	for offset := int64(0); offset < size; offset += contents.PageSize {
		contents.Page(&page, os.Getenv("UNIT"), name, offset)
		if _, err := unix.Pwrite(raw, page[:min(contents.PageSize, size-offset)], offset); err != nil {
			return err
		}
	}
	_, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seals)
	return err
}
