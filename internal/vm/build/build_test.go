// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/internal/vm/cache"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// host stands for the commands of the host: it records them and leaves the
// files that they would.
type host struct {
	t       *testing.T
	offline bool
	version string   // of the kernel source
	config  string   // what "make allnoconfig" leaves
	fail    string   // the first command that has this in its line fails
	ran     []string // command lines, with the cache directory cut out
	cache   string   // the cache directory
}

const indexTargets = `Origin: Other
Label: Other
Site: http://other.example

Origin: Debian
Label: Debian-Security
Site: http://security.example

Origin: Debian
Label: Debian
Site: http://debian.example
`

// depends is how Debian's packages lead to the cloud kernel.
var depends = map[string]string{
	cloudPackage:                "linux-base-cloud-amd64 (= 1), linux-image-9-cloud-amd64 (= 1)",
	"linux-image-9-cloud-amd64": "dracut | initramfs-tools, linux-binary-9-cloud-amd64 (= 1)",
}

func newBuilder(t *testing.T, h *host) *Builder {
	t.Helper()
	h.t, h.cache = t, t.TempDir()
	module := t.TempDir()
	write(t, filepath.Join(module, "contrib/vm/kernel.config"), "# why\nCONFIG_A=y\n\nCONFIG_B=n\n")
	write(t, filepath.Join(module, "contrib/vm/packages"), "systemd\nudev # for devices\n")
	write(t, filepath.Join(module, "contrib/vm/overlay/etc/hostname"), "guest\n")
	return &Builder{
		Cache: cache.Cache{Dir: h.cache}, Module: module, Log: progress.New(io.Discard),
		run: h.run, output: h.output,
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func (h *host) record(cmd *exec.Cmd) error {
	line := strings.ReplaceAll(strings.Join(cmd.Args, " "), h.cache, "CACHE")
	h.ran = append(h.ran, line)
	if h.fail != "" && strings.Contains(line, h.fail) {
		h.fail = ""
		return errors.New("failed as told")
	}
	return nil
}

func (h *host) output(cmd *exec.Cmd) (string, error) {
	switch cmd.Args[0] + " " + cmd.Args[1] {
	case "apt-get indextargets":
		return indexTargets, h.record(cmd)
	case "apt-cache --no-all-versions":
		name := cmd.Args[3]
		return fmt.Sprintf("Package: %s\nVersion: %s\nDepends: %s\n", name, h.version, depends[name]), h.record(cmd)
	}
	return "", fmt.Errorf("unexpected command %q", cmd.Args)
}

func (h *host) run(_ context.Context, log string, cmd *exec.Cmd) error {
	if err := h.record(cmd); err != nil {
		return err
	}
	args, last := cmd.Args, cmd.Args[len(cmd.Args)-1]
	switch {
	case args[0] == "apt-get" && args[1] == "update":
		if h.offline {
			return errors.New("the network is down")
		}
	case args[0] == "apt-get" && args[1] == "download":
		name, _, _ := strings.Cut(last, "=")
		write(h.t, filepath.Join(cmd.Dir, name+"_1_all.deb"), "")
	case args[0] == "sh" && filepath.Base(last) == "bzImage":
		write(h.t, last, filepath.Base(args[len(args)-2]))
	case args[0] == "sh":
		write(h.t, filepath.Join(last, "Makefile"), "")
	case last == "allnoconfig":
		write(h.t, filepath.Join(args[2], ".config"), h.config)
	case last == "bzImage":
		write(h.t, filepath.Join(args[2], "arch/x86/boot/bzImage"), "kernel")
	case args[0] == "mmdebstrap":
		write(h.t, args[slices.IndexFunc(args, func(arg string) bool { return strings.HasSuffix(arg, ".tar") })], "root")
	case args[0] == "tar":
		for _, dir := range []string{"etc", "var", "usr"} {
			write(h.t, filepath.Join(last, dir, "base"), "")
		}
	case args[0] == "go":
		write(h.t, args[len(args)-2], "agent")
	case args[0] == "install":
		write(h.t, last, "")
	case args[0] == "mke2fs":
		write(h.t, args[len(args)-2], "disk")
	}
	return nil
}

// count says how many of the commands have text in their line.
func (h *host) count(text string) int {
	n := 0
	for _, line := range h.ran {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

const goodConfig = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n"

func TestKernelIsBuiltOncePerVersionAndConfig(t *testing.T) {
	h := &host{version: "7.2.1-1", config: goodConfig}
	b := newBuilder(t, h)
	var paths []string
	build := func() {
		t.Helper()
		path, err := b.Kernel(t.Context(), "7.2")
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	build()
	build()
	h.version = "7.2.2-1"
	build()
	write(t, b.input("kernel.config"), "CONFIG_A=y\n")
	build()
	if n := h.count("bzImage"); n != 3 {
		t.Errorf("built %d kernels, want 3:\n%s", n, strings.Join(h.ran, "\n"))
	}
	if n := h.count("apt-get update"); n != 1 {
		t.Errorf("asked the mirror %d times within the hour, want once", n)
	}
	if paths[0] != paths[1] || paths[1] == paths[2] || paths[2] == paths[3] {
		t.Errorf("kernels are at\n%s", strings.Join(paths, "\n"))
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(paths[0]), ".*"))
	if data, _ := os.ReadFile(paths[0]); err != nil || len(left) != 1 || string(data) != "kernel" {
		t.Errorf("artefact: %q beside %v, %v", data, left, err)
	}
}

func TestInterruptedKernelBuildGoesOnInItsTree(t *testing.T) {
	h := &host{version: "1", config: goodConfig, fail: "bzImage"}
	b := newBuilder(t, h)
	if _, err := b.Kernel(t.Context(), "7.2"); err == nil {
		t.Fatal("a failed build is no error")
	}
	if _, err := b.Kernel(t.Context(), "7.2"); err != nil {
		t.Fatal(err)
	}
	if n := h.count("apt-get download"); n != 1 {
		t.Errorf("fetched the source %d times, want once", n)
	}
}

func TestInterruptedUnpackingStartsAgain(t *testing.T) {
	h := &host{version: "1", config: goodConfig, fail: "dpkg-deb"}
	b := newBuilder(t, h)
	if _, err := b.Kernel(t.Context(), "7.2"); err == nil {
		t.Fatal("a failed build is no error")
	}
	if _, err := b.Kernel(t.Context(), "7.2"); err != nil {
		t.Fatal(err)
	}
	if n := h.count("dpkg-deb"); n != 2 {
		t.Errorf("unpacked %d times, want twice", n)
	}
}

func TestKernelBuiltBeforeServesWithoutANetwork(t *testing.T) {
	h := &host{version: "1", config: goodConfig}
	b := newBuilder(t, h)
	want, err := b.Kernel(t.Context(), "7.2")
	if err != nil {
		t.Fatal(err)
	}
	h.offline = true
	if err := os.Remove(b.aptStamp()); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Kernel(t.Context(), "7.2"); err != nil || got != want {
		t.Errorf("without a network: %s, %v; want %s", got, err, want)
	}
	if _, err := b.Kernel(t.Context(), "7.3"); err == nil {
		t.Error("without a network there was a kernel that was never built")
	}
	write(t, b.input("kernel.config"), "CONFIG_A=y\n")
	if _, err := b.Kernel(t.Context(), "7.2"); err == nil {
		t.Error("a kernel of another configuration was taken")
	}
}

func TestDroppedKernelSettingFailsTheBuildByName(t *testing.T) {
	h := &host{version: "1", config: "# CONFIG_A is not set\nCONFIG_B=m\n"}
	b := newBuilder(t, h)
	_, err := b.Kernel(t.Context(), "7.2")
	if err == nil || !strings.Contains(err.Error(), "CONFIG_A=y CONFIG_B=n") {
		t.Errorf("error is %v", err)
	}
	if h.count("bzImage") != 0 {
		t.Error("it was built all the same")
	}
}

func TestCloudKernelIsTakenOutOfItsPackageOncePerVersion(t *testing.T) {
	h := &host{version: "1", fail: "dpkg-deb"}
	b := newBuilder(t, h)
	if _, err := b.CloudKernel(t.Context()); err == nil {
		t.Fatal("a failed attempt is no error")
	}
	var paths []string
	for _, version := range []string{"1", "1", "2"} {
		h.version = version
		path, err := b.CloudKernel(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	if n := h.count("apt-get download linux-binary-9-cloud-amd64="); n != 3 || paths[0] != paths[1] || paths[1] == paths[2] {
		t.Errorf("fetched %d times, want 3; the kernels are at\n%s", n, strings.Join(paths, "\n"))
	}
	if data, err := os.ReadFile(paths[0]); string(data) != "linux-binary-9-cloud-amd64_1_all.deb" {
		t.Errorf("the kernel comes from %q, %v", data, err)
	}
	h.offline = true
	if err := os.Remove(b.aptStamp()); err != nil {
		t.Fatal(err)
	}
	if got, err := b.CloudKernel(t.Context()); err != nil || got != paths[2] {
		t.Errorf("without a network: %s, %v; want %s", got, err, paths[2])
	}
}

func TestBackportsComeBeforeSid(t *testing.T) {
	b := newBuilder(t, &host{version: "1"})
	if _, err := b.newest(t.Context(), "linux-source-7.3"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(b.aptDir(), "sources.list"))
	if err != nil {
		t.Fatal(err)
	}
	const source = "deb [signed-by=" + keyring + "] http://debian.example "
	if diff := cmp.Diff(source+"trixie-backports main\n"+source+"sid main\n", string(got)); diff != "" {
		t.Errorf("sources differ (-want +got):\n%s", diff)
	}
	conf, err := os.ReadFile(filepath.Join(b.aptDir(), "apt.conf"))
	if err != nil || !strings.Contains(string(conf), `APT::Default-Release "trixie-backports";`) {
		t.Errorf("apt takes the newer version of sid: %v\n%s", err, conf)
	}
}

func TestImageIsBuiltAgainWhenAnInputChanges(t *testing.T) {
	h := &host{}
	b := newBuilder(t, h)
	dir := t.TempDir()
	kernel, deb, prog := filepath.Join(dir, "bzImage"), filepath.Join(dir, "deb"), filepath.Join(dir, "prog")
	for _, path := range []string{kernel, deb, prog} {
		write(t, path, "1")
	}
	plain := Image{Kernel: kernel}
	full := Image{Kernel: kernel, Deb: deb, Files: map[string]string{"/usr/bin/prog": prog}}
	sid := full
	sid.Suite = Sid
	steps := []struct {
		name   string
		change func()
		image  Image
		fresh  bool
	}{
		{"first", func() {}, plain, true},
		{"again", func() {}, plain, false},
		{"with package and file", func() {}, full, true},
		{"another kernel", func() { write(t, kernel, "2") }, full, true},
		{"another package", func() { write(t, deb, "2") }, full, true},
		{"another file", func() { write(t, prog, "2") }, full, true},
		{"another overlay", func() { write(t, b.input("overlay/etc/hostname"), "2") }, full, true},
		{"a program in the overlay", func() { chmod(t, b.input("overlay/etc/hostname"), 0o755) }, full, true},
		{"another umask", func() { chmod(t, b.input("overlay/etc/hostname"), 0o700) }, full, false},
		{"other packages", func() { write(t, b.input("packages"), "systemd\n") }, full, true},
		{"another kernel besides", func() { full.Files["/boot/bzImage-next"] = kernel }, full, true},
		{"another release", func() {}, sid, true},
		{"nothing else", func() {}, full, false},
	}
	for _, step := range steps {
		step.change()
		before := h.count("mke2fs")
		if _, err := b.Image(t.Context(), step.image); err != nil {
			t.Fatal(err)
		}
		if fresh := h.count("mke2fs") > before; fresh != step.fresh {
			t.Errorf("%s: built %t, want %t", step.name, fresh, step.fresh)
		}
	}
	if n := h.count("mmdebstrap"); n != 3 {
		t.Errorf("made %d root file systems, want 3", n)
	}
	if n := h.count("go build"); n != 1 {
		t.Errorf("linked the agent %d times, want once", n)
	}
}

func TestRootComesFromTheHostsMirror(t *testing.T) {
	const options = `mmdebstrap --variant=minbase --include=systemd,udev --aptopt=Acquire::Check-Valid-Until "false"` +
		" --keyring=" + keyring
	for suite, want := range map[string]string{
		Trixie: " trixie CACHE/work/root.out/root.tar deb http://debian.example trixie main",
		Bookworm: ` --aptopt=APT::Default-Release "bookworm-backports" bookworm CACHE/work/root.out/root.tar` +
			" deb http://debian.example bookworm main deb http://debian.example bookworm-backports main",
	} {
		t.Run(suite, func(t *testing.T) {
			h := &host{}
			b := newBuilder(t, h)
			if _, err := b.Root(t.Context(), suite); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(options+want, h.ran[len(h.ran)-1]); diff != "" {
				t.Errorf("command differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPickMirror(t *testing.T) {
	tests := map[string]struct{ targets, want string }{
		"by its label":              {indexTargets, "http://debian.example"},
		"by its path, no lists yet": {"Site: http://a.example/x\n\nSite: http://b.example/debian\n", "http://b.example/debian"},
		"none but of others":        {"Origin: Other\nLabel: Other\nSite: http://other.example\n", ""},
		"none":                      {"", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := pickMirror(test.targets)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}
