// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/kho"
)

// maxProcFile bounds what is read of a file that the kernel makes up, in bytes.
const maxProcFile = 1 << 20

var statePattern = regexp.MustCompile("^" + formatString)

// Running says the same of the running kernel as Read says of an image. root is
// the machine's file system (os.DirFS("/")). The sources are, the later ones before
// the earlier:
//
//   - /usr/lib/modules/RELEASE/vmlinuz or else /boot/vmlinuz-RELEASE, if its banner
//     is that of the running kernel. It takes as long as Read.
//   - /proc/config.gz
//   - what debugfs has of the state for the next kernel: all but the format of
//     memfds
//
// What none of them has is not known, and says why. An error means that the
// kernel's release or version cannot be read from /proc, or is the context's.
func Running(ctx context.Context, root fs.FS) (*Kernel, error) {
	release, err := readFile(root, "proc/sys/kernel/osrelease")
	if err != nil {
		return nil, fmt.Errorf("read the running kernel's release: %w", err)
	}
	banner, err := readFile(root, "proc/version")
	if err != nil {
		return nil, fmt.Errorf("read the running kernel's version: %w", err)
	}
	k, err := bootedImage(ctx, root, strings.TrimSpace(string(release)), strings.TrimSpace(string(banner)))
	if err != nil {
		return nil, fmt.Errorf("read the running kernel's image: %w", err)
	}
	config, err := procConfig(root)
	k.Config = learn(k.Config, config, SourceProcConfig, err)
	for part, name := range map[Part]string{KHO: "fdt", LUO: "sub_fdts/LUO"} {
		formats, err := debugfsFormats(root, part, "sys/kernel/debug/kho/out/"+name)
		k.Formats[part] = learn(k.Formats[part], formats, kho.SourceDebugfs, err)
	}
	return k, nil
}

// learn returns a fact with what another source says of it.
func learn[T any](fact kho.Fact[T], value T, source kho.Source, err error) kho.Fact[T] {
	switch {
	case err == nil:
		return kho.Fact[T]{Known: true, Value: value, Source: source}
	case !fact.Known:
		fact.Why += "; " + err.Error()
	}
	return fact
}

// bootedImage returns what the image of the kernel with this release and banner
// says; if there is none, a kernel of which no more is known. An error is the
// context's.
func bootedImage(ctx context.Context, root fs.FS, release, banner string) (*Kernel, error) {
	var why []string
	for _, name := range []string{"usr/lib/modules/" + release + "/vmlinuz", "boot/vmlinuz-" + release} {
		k, err := readNamed(ctx, root, name)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			why = append(why, err.Error())
		case k.Banner != banner:
			why = append(why, "/"+name+" is of another build")
		default:
			return k, nil
		}
	}
	k := &Kernel{Release: release, Banner: banner, Formats: map[Part]kho.Fact[[]string]{}}
	k.Config.Why = strings.Join(why, "; ")
	for _, part := range Parts() {
		k.Formats[part] = kho.Fact[[]string]{Why: k.Config.Why}
	}
	return k, nil
}

func readNamed(ctx context.Context, root fs.FS, name string) (*Kernel, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, absolute(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, absolute(name, err)
	}
	r, ok := f.(io.ReaderAt)
	if !ok {
		return nil, fmt.Errorf("/%s: not a file", name)
	}
	k, err := Read(ctx, r, info.Size())
	if err != nil {
		return nil, absolute(name, err)
	}
	return k, nil
}

func procConfig(root fs.FS) (Config, error) {
	const name = "proc/config.gz"
	packed, err := readFile(root, name)
	if err != nil {
		return nil, err
	}
	config, err := unpackConfig(packed)
	if err != nil {
		return nil, absolute(name, err)
	}
	return config, nil
}

// debugfsFormats returns the formats in a file that
// kernel/liveupdate/kexec_handover_debugfs.c makes (Linux 7.2). It is a struct that
// starts with its format, or a device tree, whose values all stand at multiples of
// 4. debugfs shows no more of a tree than there was at first (kho_init), so that
// the names of values can be missing, which are at its end.
func debugfsFormats(root fs.FS, part Part, name string) ([]string, error) {
	state, err := readFile(root, name)
	if err != nil {
		return nil, err
	}
	var formats []string
	for at := 0; at < len(state); at += 4 {
		format := statePattern.FindSubmatch(state[at:min(len(state), at+maxFormat)])
		if format != nil && partOf(string(format[1])) == part {
			formats = append(formats, string(format[1]))
		}
	}
	if len(formats) == 0 {
		return nil, fmt.Errorf("/%s: no %s format in it", name, part)
	}
	slices.Sort(formats)
	return formats, nil
}

// readFile returns the first maxProcFile bytes of a file.
func readFile(root fs.FS, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, absolute(name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile))
	if err != nil {
		return nil, absolute(name, err)
	}
	return b, nil
}

// absolute puts the whole path before an error, of which an fs.FS knows a part.
func absolute(name string, err error) error {
	if inner, ok := errors.AsType[*fs.PathError](err); ok {
		err = inner.Err
	}
	return fmt.Errorf("/%s: %w", name, err)
}
