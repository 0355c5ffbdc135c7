// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/cache"
)

const (
	// rootRecipe and imageRecipe count the changes to how each is built.
	rootRecipe  = "1"
	imageRecipe = "3"
	// rootWait and imageWait bound a build, or the wait for somebody else's.
	rootWait  = 15 * time.Minute
	imageWait = 5 * time.Minute
	// imageSize is the size of the file system; what is not used is a hole.
	imageSize = "2G"
	// imagesKept bounds the images in the cache, of some 300 MB each.
	imagesKept = 8
	// agentPath is where contrib/vm/overlay's vm-agent.service looks for it.
	agentPath = "/usr/local/lib/vm-agent"
)

// Image says what is on a disk image besides the packages of contrib/vm/packages
// and the files of contrib/vm/overlay.
type Image struct {
	Suite  string            // Debian release; default Trixie
	Kernel string            // path of the bzImage that becomes /boot/bzImage
	Deb    string            // path of a package to install; default none
	Files  map[string]string // path in the guest to path on the host
}

// Image returns the path of a raw disk image with one ext4 file system. It
// takes seconds when the suite's root file system is cached.
func (b *Builder) Image(ctx context.Context, img Image) (string, error) {
	if img.Suite == "" {
		img.Suite = Trixie
	}
	root, err := b.Root(ctx, img.Suite)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, imageWait)
	defer cancel()
	files, err := b.files(ctx, img)
	if err != nil {
		return "", fmt.Errorf("build an image: %w", err)
	}
	key, err := b.imageKey(img, files, root)
	if err != nil {
		return "", fmt.Errorf("build an image: %w", err)
	}
	dir, err := b.Cache.Ensure(ctx, "image", key, func(out, work string) error {
		return imageBuild{Builder: b, img: img, files: files, root: root, out: out, work: work}.build(ctx)
	})
	if err != nil {
		return "", fmt.Errorf("build an image: %w", err)
	}
	return filepath.Join(dir, "disk.img"), b.Cache.Prune("image", imagesKept)
}

// Root returns the path of a tarball of a Debian release's root file system
// with the packages that contrib/vm/packages lists.
func (b *Builder) Root(ctx context.Context, suite string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, rootWait)
	defer cancel()
	packages, err := b.lines("packages")
	if err != nil {
		return "", err
	}
	key := suite + "-" + cache.Key(append(packages, rootRecipe)...)
	dir, err := b.Cache.Ensure(ctx, "root", key, func(out, work string) error {
		mirror, err := b.mirror(ctx)
		if err != nil {
			return err
		}
		b.Log.Printf("root file system: %s with mmdebstrap, half a minute", suite)
		return b.run(ctx, filepath.Join(work, "mmdebstrap.log"), exec.Command("mmdebstrap",
			rootArgs(suite, packages, filepath.Join(out, "root.tar"), mirror)...))
	})
	if err != nil {
		return "", fmt.Errorf("build the root file system of %s: %w", suite, err)
	}
	return filepath.Join(dir, "root.tar"), nil
}

// rootArgs are the arguments of mmdebstrap. A release's backports are that release,
// with the packages that the backports have as they have them.
func rootArgs(suite string, packages []string, tarball, mirror string) []string {
	args := []string{
		"--variant=minbase", "--include=" + strings.Join(packages, ","),
		`--aptopt=Acquire::Check-Valid-Until "false"`, "--keyring=" + keyring,
	}
	release, backports := strings.CutSuffix(suite, "-backports")
	if backports {
		args = append(args, fmt.Sprintf("--aptopt=APT::Default-Release %q", suite))
	}
	args = append(args, release, tarball, "deb "+mirror+" "+release+" main")
	if backports {
		args = append(args, "deb "+mirror+" "+suite+" main")
	}
	return args
}

// files is img.Files and what every image has: the kernel and the agent.
func (b *Builder) files(ctx context.Context, img Image) (map[string]string, error) {
	agent, err := b.Program(ctx, "./internal/vm/agent")
	if err != nil {
		return nil, err
	}
	files := map[string]string{agentPath: agent, "/boot/bzImage": img.Kernel}
	maps.Copy(files, img.Files)
	return files, nil
}

func (b *Builder) imageKey(img Image, files map[string]string, root string) (string, error) {
	parts := []string{imageRecipe, imageSize, filepath.Dir(root)}
	if img.Deb != "" {
		sum, err := cache.FileKey(img.Deb)
		if err != nil {
			return "", err
		}
		parts = append(parts, sum)
	}
	for _, guest := range slices.Sorted(maps.Keys(files)) {
		sum, err := cache.FileKey(files[guest])
		if err != nil {
			return "", err
		}
		parts = append(parts, guest, sum)
	}
	overlay, err := treeKey(b.input("overlay"))
	return img.Suite + "-" + cache.Key(append(parts, overlay)...), err
}

// treeKey hashes the names, kinds, contents and link targets below dir, and of the modes
// what install goes by.
func treeKey(dir string) (string, error) {
	var parts []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		parts = append(parts, strings.TrimPrefix(path, dir), d.Type().String())
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			parts = append(parts, target)
			return err
		case d.Type().IsRegular():
			sum, failed := cache.FileKey(path)
			st, err := d.Info()
			if err := errors.Join(failed, err); err != nil {
				return err
			}
			parts = append(parts, sum, installMode(st))
		}
		return nil
	})
	return cache.Key(parts...), err
}

// imageBuild makes one image.
type imageBuild struct {
	*Builder
	img       Image
	files     map[string]string
	root      string
	out, work string
}

func (i imageBuild) build(ctx context.Context) error {
	i.Log.Printf("image: unpacking %s", i.img.Suite)
	tree := filepath.Join(i.work, "tree")
	if err := errors.Join(os.RemoveAll(tree), os.Mkdir(tree, 0o755)); err != nil {
		return err
	}
	untar := exec.Command("tar", "-xp", "--numeric-owner", "--xattrs", "-f", i.root, "-C", tree)
	if err := i.run(ctx, i.log("unpack"), untar); err != nil {
		return err
	}
	if err := i.overlay(ctx, tree); err != nil {
		return err
	}
	for _, guest := range slices.Sorted(maps.Keys(i.files)) {
		if err := i.install(ctx, i.files[guest], filepath.Join(tree, guest)); err != nil {
			return err
		}
	}
	if err := i.installDeb(ctx, tree); err != nil {
		return err
	}
	if err := markUpdated(tree); err != nil {
		return err
	}
	i.Log.Printf("image: making the file system")
	return i.run(ctx, i.log("mke2fs"), exec.Command("mke2fs", "-q", "-t", "ext4", "-d", tree,
		"-E", "lazy_itable_init=0,lazy_journal_init=0", filepath.Join(i.out, "disk.img"), imageSize))
}

// markUpdated spares every boot what systemd does once after /usr has changed:
// see systemd-update-done.service(8).
func markUpdated(tree string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(tree, "etc/.updated"), nil, 0o644),
		os.WriteFile(filepath.Join(tree, "var/.updated"), nil, 0o644))
}

// overlay puts the overlay's files and symlinks over a tree, and its directories where
// there are none.
func (i imageBuild) overlay(ctx context.Context, tree string) error {
	from := i.input("overlay")
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		to := filepath.Join(tree, strings.TrimPrefix(path, from))
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return makeDir(to)
		case d.Type()&fs.ModeSymlink == 0:
			return i.install(ctx, path, to)
		}
		return i.run(ctx, i.log("overlay"), exec.Command("cp", "-P", "--remove-destination", path, to))
	})
}

// makeDir makes a directory, unless it is there, with the mode that is usual: see install.
func makeDir(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return errors.Join(err, os.Chmod(path, 0o755))
}

// install copies a file and makes the directories it needs. Its mode is what is usual,
// whatever the umask was when it was made: the cache is for everybody.
func (i imageBuild) install(ctx context.Context, from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	return i.run(ctx, i.log("install"), exec.Command("install", "-D", "-T", "--mode="+installMode(st), from, to))
}

func installMode(st fs.FileInfo) string {
	if st.Mode()&0o100 != 0 {
		return "755"
	}
	return "644"
}

// installDeb installs the package with the image's own dpkg.
func (i imageBuild) installDeb(ctx context.Context, tree string) error {
	if i.img.Deb == "" {
		return nil
	}
	i.Log.Printf("image: installing %s", filepath.Base(i.img.Deb))
	inside := filepath.Join(tree, "package.deb")
	if err := i.install(ctx, i.img.Deb, inside); err != nil {
		return err
	}
	cmd := exec.Command("chroot", tree, "dpkg", "--install", "/package.deb")
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive", "SYSTEMD_OFFLINE=1",
	}
	if err := i.run(ctx, i.log("dpkg"), cmd); err != nil {
		return err
	}
	return os.Remove(inside)
}

func (i imageBuild) log(step string) string { return filepath.Join(i.work, step+".log") }
