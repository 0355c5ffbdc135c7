// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// own takes ownership of what a call returned, for the length of the test.
func own(t *testing.T, raw int, err error) *fd.FD {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	f := fd.New(raw)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// entry is what PID 1 would say of f.
func entry(t *testing.T, f *fd.FD) *Entry {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	link, err := f.Link()
	if err != nil {
		t.Fatal(err)
	}
	flags, err := OpenFlags(f)
	if err != nil {
		t.Fatal(err)
	}
	return &Entry{Mode: st.Mode, Dev: st.Dev, Ino: st.Ino, Rdev: st.Rdev, Path: link, Flags: flags}
}

// duplicator looks at this process as it would at PID 1.
func duplicator(t *testing.T) *Duplicator {
	t.Helper()
	d, err := OpenDuplicator(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func dupOne(d *Duplicator, e *Entry) (*File, error) {
	files, failed := d.Dup([]Entry{*e})
	return files[0], failed[0]
}

func pipe(t *testing.T) (read, write *fd.FD) {
	t.Helper()
	var p [2]int
	err := unix.Pipe2(p[:], unix.O_CLOEXEC)
	return own(t, p[0], err), own(t, p[1], err)
}

func TestDupFindsFilesWithAnInodeOfTheirOwn(t *testing.T) {
	read, write := pipe(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	a, b := own(t, pair[0], err), own(t, pair[1], err)
	files := map[string]*fd.FD{"memfd": fdtest.Memfd(t), "read end": read, "write end": write, "socket": a, "other socket": b}
	d := duplicator(t)
	for name, f := range files {
		e := entry(t, f)
		dup, err := dupOne(d, e)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(e, entry(t, dup.FD)); diff != "" {
			t.Errorf("%s: another file (-want +got):\n%s", name, diff)
		}
		_ = dup.FD.Close()
	}
}

func TestDupOfWhatIsGoneOrAnotherFileSaysThatTheStoreChanged(t *testing.T) {
	f := fdtest.Memfd(t)
	e := entry(t, f)
	for name, change := range map[string]func(e *Entry){
		"inode": func(e *Entry) { e.Ino++ }, "device": func(e *Entry) { e.Dev++ },
		"kind":  func(e *Entry) { e.Mode = unix.S_IFIFO },
		"flags": func(e *Entry) { e.Flags |= unix.O_APPEND },
		"rdev":  func(e *Entry) { e.Rdev = 1 },
	} {
		other := *e
		change(&other)
		if _, err := dupOne(duplicator(t), &other); !errors.Is(err, ErrChanged) {
			t.Errorf("another %s: %v, want ErrChanged", name, err)
		}
	}
	d := duplicator(t)
	_ = f.Close()
	if _, err := dupOne(d, e); !errors.Is(err, ErrChanged) {
		t.Errorf("closed since it was listed: %v, want ErrChanged", err)
	}
}

func TestDupGivesEachOpenFileOfAnInodeOnce(t *testing.T) {
	f := fdtest.Memfd(t)
	again := own2(t, f)
	if _, err := unix.Seek(raw(t, again), 0, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	d := duplicator(t)
	e := entry(t, f)
	seen := []int64{}
	for i := range 2 {
		dup, err := dupOne(d, e)
		if err != nil {
			t.Fatal(err)
		}
		defer dup.FD.Close()
		// A dup shares the position with what it was made from.
		position, err := unix.Seek(raw(t, dup.FD), 10*int64(i+1), unix.SEEK_CUR)
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, position)
	}
	if !slices.Equal(seen, []int64{10, 20}) {
		t.Errorf("positions %v: the same open file came twice", seen)
	}
	if _, err := dupOne(d, e); !errors.Is(err, ErrChanged) {
		t.Errorf("a third time: %v, want ErrChanged", err)
	}
}

// What PID 1 says of the open flags tells files apart, whatever their positions are.
func TestOnlyWhatCannotBeToldApartIsGuessed(t *testing.T) {
	f := fdtest.Memfd(t)
	e := entry(t, f)
	reads := reopen(t, f, unix.O_RDONLY)
	if _, err := unix.Pwrite(raw(t, f), []byte("0123"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(raw(t, reads), 2, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	guessed := func() bool {
		files, failed := duplicator(t).Dup([]Entry{*entry(t, reads), *e}) // as PID 1 would list them
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
		defer files[0].FD.Close()
		defer files[1].FD.Close()
		return files[1].Guessed
	}
	if guessed() {
		t.Error("one of two with other flags is guessed")
	}
	if _, err := unix.Seek(raw(t, own2(t, f)), 3, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	if !guessed() {
		t.Error("one of two with the same flags is not guessed")
	}
}

// own2 opens the file behind f a second time.
func own2(t *testing.T, f *fd.FD) *fd.FD {
	t.Helper()
	return reopen(t, f, unix.O_RDWR)
}

func reopen(t *testing.T, f *fd.FD, flags int) *fd.FD {
	t.Helper()
	var again int
	err := f.Do(func(raw int) (err error) {
		again, err = unix.Open("/proc/self/fd/"+strconv.Itoa(raw), flags|unix.O_CLOEXEC, 0)
		return err
	})
	return own(t, again, err)
}

func raw(t *testing.T, f *fd.FD) (n int) {
	t.Helper()
	if err := f.Do(func(raw int) error { n = raw; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// With a descriptor for each pair of an entry and a number there would be 10,000.
func TestManyOpenFilesOfOneInodeAreDuplicatedOnce(t *testing.T) {
	f := fdtest.Memfd(t)
	entries := []Entry{*entry(t, f)}
	for len(entries) < 100 {
		own2(t, f)
		entries = append(entries, entries[0])
	}
	d := duplicator(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	limit := old
	limit.Cur = 400
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	files, failed := d.Dup(entries)
	for i := range files {
		if failed[i] != nil {
			t.Fatalf("entry %d: %v", i, failed[i])
		}
		_ = files[i].FD.Close()
	}
}

func TestFilesThatShareAnInodeAreNotGuessed(t *testing.T) {
	one, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	f := own(t, one, err)
	two, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	own(t, two, err)
	e := entry(t, f)
	if !e.Anonymous() || e.Type() != "eventfd" {
		t.Errorf("Type %q, Anonymous %v", e.Type(), e.Anonymous())
	}
	if _, err := dupOne(duplicator(t), e); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("Dup: %v, want ErrAmbiguous", err)
	}
}

func TestTypeSaysWhatAnEntryIs(t *testing.T) {
	for want, e := range map[string]Entry{
		"memfd":            {Mode: unix.S_IFREG, Path: "/memfd:x (deleted)"},
		"file":             {Mode: unix.S_IFREG, Path: "/etc/passwd"},
		"pipe":             {Mode: unix.S_IFIFO, Path: "pipe:[1]"},
		"socket":           {Mode: unix.S_IFSOCK, Path: "socket:[1]"},
		"directory":        {Mode: unix.S_IFDIR, Path: "/"},
		"character device": {Mode: unix.S_IFCHR, Path: "/dev/null"},
		"block device":     {Mode: unix.S_IFBLK, Path: "/dev/vda"},
		"luo_session":      {Path: "anon_inode:[luo_session] a.b"},
		"inotify":          {Path: "anon_inode:inotify"},
		"unknown":          {},
	} {
		if got := e.Type(); got != want {
			t.Errorf("Type of %+v is %q, want %q", e, got, want)
		}
	}
	if e := (Entry{Mode: unix.S_IFREG, Path: "/ (deleted)"}); e.Type() != "memfd" {
		t.Errorf("a restored memfd is a %q", e.Type())
	}
}

func TestOptInIsSystemdsOwn(t *testing.T) {
	for _, test := range []struct {
		max      uint32
		preserve string
		want     bool
	}{{1, "yes", true}, {1, "on-success", true}, {0, "yes", false}, {1, "restart", false}, {1, "no", false}, {1, "", false}} {
		s := Store{Max: test.max, Preserve: test.preserve}
		if s.OptedIn() != test.want {
			t.Errorf("FileDescriptorStoreMax=%d FileDescriptorStorePreserve=%s: %v, want %v", test.max, test.preserve, !test.want, test.want)
		}
	}
}

func TestUnitPathIsEscapedAsSystemdDoes(t *testing.T) {
	for unit, want := range map[string]string{
		"a.service":        "/org/freedesktop/systemd1/unit/a_2eservice",
		"9x@1-b.service":   "/org/freedesktop/systemd1/unit/_39x_401_2db_2eservice",
		`a\x2db_c.service`: "/org/freedesktop/systemd1/unit/a_5cx2db_5fc_2eservice",
	} {
		if got := unitPath(unit); got != want {
			t.Errorf("unitPath(%q) = %s, want %s", unit, got, want)
		}
	}
}

func TestConnectEndsWhenPID1DoesNotAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", path) // connects, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := Connect(ctx, path); !errors.Is(err, ErrManager) {
		t.Errorf("Connect: %v, want ErrManager", err)
	}
	if _, err := Connect(t.Context(), path+"x"); !errors.Is(err, unix.ENOENT) || !errors.Is(err, ErrManager) {
		t.Errorf("Connect to nothing: %v, want ENOENT and ErrManager", err)
	}
}

// Open files of one inode go to the entries whose numbers they fit between.
func TestAssignKeepsTheOrder(t *testing.T) {
	for name, test := range map[string]struct {
		costs [][]int
		want  []int
	}{
		"as many as there are":  {[][]int{{0, 9}, {9, 0}}, []int{0, 1}},
		"never out of order":    {[][]int{{9, 0}, {0, 9}}, []int{0, 1}},
		"the best of more":      {[][]int{{5, 1, 7}, {5, 7, 1}}, []int{1, 2}},
		"one goes without":      {[][]int{{3}, {1}}, []int{-1, 0}},
		"one that is no match":  {[][]int{{impossible, impossible}, {1, 2}}, []int{-1, 0}},
		"nothing to be had":     {[][]int{{}, {}}, []int{-1, -1}},
		"no entries":            {nil, []int{}},
		"the first in the last": {[][]int{{4, 4, 2}}, []int{2}},
	} {
		columns := 0
		if len(test.costs) > 0 {
			columns = len(test.costs[0])
		}
		if got := assign(test.costs, columns); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// As when a service was done with its session while the others were duplicated.
func TestSessionsThatAreGoneByNowAreLeftOut(t *testing.T) {
	d := duplicator(t)
	there := fdtest.Memfd(t)
	var number int
	_ = there.Do(func(raw int) error { number = raw; return nil })
	d.found = map[file]*numbers{
		{link: sessionLink + " there"}: {list: []int{number}},
		{link: sessionLink + " gone"}:  {list: []int{math.MaxInt32}}, // which nothing gets meanwhile
	}
	sessions, err := d.Sessions()
	if len(sessions) != 1 || err != nil {
		t.Fatalf("Sessions: %v, %v", sessions, err)
	}
	if same, err := sessions[0].SameOpenFile(there); !same || err != nil {
		t.Errorf("it is another: %v", err)
	}
	_ = sessions[0].Close()
}
