// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The Debian releases that a root file system can be of.
const (
	Bookworm = "bookworm-backports" // systemd 254
	Trixie   = "trixie"             // systemd 257
	Sid      = "sid"                // systemd 262 or later: it moves on, and a cached root stays as it is
)

// kernelSuites have the kernels: the next one has what the first has not.
var kernelSuites = [...]string{"trixie-backports", Sid}

const (
	// keyring signs every suite the test bed uses.
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	// listsFresh is how long the package lists are used without asking the mirror.
	listsFresh = time.Hour
	// listsWait bounds an update of the package lists, which takes seconds.
	listsWait = 90 * time.Second
)

// debPackage is a package that the mirror has.
type debPackage struct{ name, version, depends string }

// newest finds the newest version of a package in the first of kernelSuites that
// has it.
func (b *Builder) newest(ctx context.Context, name string) (debPackage, error) {
	env, err := b.aptLists(ctx)
	if err != nil {
		return debPackage{}, err
	}
	cmd := exec.CommandContext(ctx, "apt-cache", "--no-all-versions", "show", name)
	cmd.Env = env
	out, err := b.output(cmd)
	if err != nil {
		return debPackage{}, fmt.Errorf("package %s is in none of %v: %w", name, kernelSuites, err)
	}
	for _, stanza := range stanzas(out) {
		if v := stanza["Version"]; v != "" {
			return debPackage{name: name, version: v, depends: stanza["Depends"]}, nil
		}
	}
	return debPackage{}, fmt.Errorf("package %s of %v has no version", name, kernelSuites)
}

// fromNewest returns the artefact that is made of the package that find names,
// under the key recipe-VERSION. When the mirror does not answer, one made
// before from an older package does too.
func (b *Builder) fromNewest(ctx context.Context, kind, recipe string,
	find func(context.Context) (debPackage, error),
	build func(p debPackage, out, work string) error,
) (string, error) {
	p, err := find(ctx)
	if err != nil {
		dir, ok := b.Cache.Newest(kind, recipe+"-*")
		if !ok {
			return "", err
		}
		b.Log.Printf("%s: taking the one made before: %v", kind, err)
		return dir, nil
	}
	return b.Cache.Ensure(ctx, kind, recipe+"-"+p.version, func(out, work string) error {
		return build(p, out, work)
	})
}

// downloadAnew empties dir, since what is there belongs to another package or to
// an attempt cut short, fetches the package into it and returns its path.
func (b *Builder) downloadAnew(ctx context.Context, p debPackage, dir string) (string, error) {
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		return "", err
	}
	b.Log.Printf("downloading %s %s", p.name, p.version)
	cmd := exec.Command("apt-get", "download", p.name+"="+p.version)
	cmd.Dir, cmd.Env = dir, b.aptEnv()
	if err := b.run(ctx, filepath.Join(dir, "download.log"), cmd); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, p.name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return "", errors.Join(fmt.Errorf("download of %s left %d files", p.name, len(debs)), err)
	}
	return debs[0], nil
}

func (b *Builder) aptDir() string { return filepath.Join(b.Cache.Dir, "apt") }
func (b *Builder) aptEnv() []string {
	return append(os.Environ(), "APT_CONFIG="+b.aptDir()+"/apt.conf")
}

// aptLists keeps package lists of kernelSuites apart from the host's, and
// brings them up to date when they are old. It returns the environment that
// makes apt use them.
func (b *Builder) aptLists(ctx context.Context) ([]string, error) {
	stamp := b.aptStamp()
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < listsFresh {
		return b.aptEnv(), nil
	}
	mirror, err := b.mirror(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := b.Cache.Lock(ctx, "apt")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := b.writeAptConf(mirror); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listsWait)
	defer cancel()
	b.Log.Printf("asking for the packages of %v", kernelSuites)
	cmd := exec.Command("apt-get", "update", "--error-on=any")
	cmd.Env = b.aptEnv()
	if err := b.run(ctx, filepath.Join(b.aptDir(), "update.log"), cmd); err != nil {
		return nil, err
	}
	return b.aptEnv(), os.WriteFile(stamp, nil, 0o644)
}

// aptStamp is a file as old as the package lists of kernelSuites.
func (b *Builder) aptStamp() string {
	return filepath.Join(b.aptDir(), "updated-"+strings.Join(kernelSuites[:], "-"))
}

// writeAptConf writes a configuration that looks at nothing of the host. The
// release files of backports and sid can be past their date, so that is not
// checked. Without a default release apt would prefer sid to backports.
func (b *Builder) writeAptConf(mirror string) error {
	dir := b.aptDir()
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	conf := fmt.Sprintf(`Dir::State::lists "%[1]s/lists";
Dir::State::status "/dev/null";
Dir::Cache::archives "%[1]s/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::http::Timeout "20";
APT::Sandbox::User "root";
APT::Default-Release "%[2]s";
`, dir, kernelSuites[0])
	var sources strings.Builder
	for _, suite := range kernelSuites {
		fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "apt.conf"), []byte(conf), 0o644),
		os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644))
}

// mirror returns the address of the Debian archive that the host itself uses.
func (b *Builder) mirror(ctx context.Context) (string, error) {
	out, err := b.output(exec.CommandContext(ctx, "apt-get", "indextargets", "Created-By: Packages"))
	if err != nil {
		return "", fmt.Errorf("ask apt for the host's Debian mirror: %w", err)
	}
	return pickMirror(out)
}

// pickMirror finds, among the index targets of the host, the archive that has
// all of Debian, which those of security updates and of other origins have not.
// It is labelled so; labels are unknown while no list was ever fetched, and then
// the path that every mirror uses must do.
func pickMirror(targets string) (string, error) {
	var unlabelled string
	for _, t := range stanzas(targets) {
		if t["Origin"] == "Debian" && t["Label"] == "Debian" {
			return t["Site"], nil
		}
		if t["Label"] == "" && unlabelled == "" && strings.HasSuffix(t["Site"], "/debian") {
			unlabelled = t["Site"]
		}
	}
	if unlabelled == "" {
		return "", errors.New("the host's apt sources name no Debian mirror")
	}
	return unlabelled, nil
}

// stanzas parses paragraphs of "Field: value" lines.
func stanzas(text string) []map[string]string {
	var all []map[string]string
	for para := range strings.SplitSeq(text, "\n\n") {
		fields := map[string]string{}
		for line := range strings.Lines(para) {
			if name, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
				fields[name] = strings.TrimSpace(value)
			}
		}
		all = append(all, fields)
	}
	return all
}
