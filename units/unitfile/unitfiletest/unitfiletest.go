// SPDX-License-Identifier: Apache-2.0

// Package unitfiletest makes file trees for tests of what reads unit files.
package unitfiletest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// Tree makes the files of a txtar archive in a new directory, which goes away
// with the test, and returns the directory. A file named "a -> b" is a symlink
// from a to b. What stands before the first file is a comment.
func Tree(t testing.TB, archive *txtar.Archive) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, f := range archive.Files {
		if err := makeFile(root, f); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func makeFile(root string, f txtar.File) error {
	name, target, link := strings.Cut(f.Name, " -> ")
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if link {
		return os.Symlink(target, name)
	}
	return os.WriteFile(name, f.Data, 0o644)
}

// Golden compares got with the file named want of an archive on disk, and
// fails the test with both when they differ. With FDBRIDGE_UPDATE_GOLDEN set
// it writes got there instead: read the difference before you commit it.
func Golden(t testing.TB, file string, archive *txtar.Archive, want, got string) {
	t.Helper()
	for i, f := range archive.Files {
		if f.Name != want {
			continue
		}
		if os.Getenv("FDBRIDGE_UPDATE_GOLDEN") != "" {
			archive.Files[i].Data = []byte(got)
			if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		if string(f.Data) != got {
			t.Errorf("%s: got\n%s\nwant\n%s", file, got, f.Data)
		}
		return
	}
	t.Fatalf("%s has no file %q", file, want)
}
