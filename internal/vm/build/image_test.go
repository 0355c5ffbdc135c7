// SPDX-License-Identifier: Apache-2.0

package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheLogOfAProgramThatDoesNotBuildIsThereToBeRead(t *testing.T) {
	b := newBuilder(t, &host{})
	b.run = b.Log.Run
	_, err := b.Program(t.Context(), "./none")
	if err == nil {
		t.Fatal("a program was built of nothing")
	}
	_, path, _ := strings.Cut(err.Error(), "the end of ")
	path, _, _ = strings.Cut(path, ":\n")
	if data, failed := os.ReadFile(path); failed != nil || len(data) == 0 {
		t.Errorf("the log that the error names has %q, %v: %v", data, failed, err)
	}
}

func TestTheModesOfAnImageAreNotThoseOfTheUmask(t *testing.T) {
	h := &host{fail: "mke2fs"} // so that the tree stays
	b := newBuilder(t, h)
	kernel := filepath.Join(t.TempDir(), "bzImage")
	write(t, kernel, "1")
	link := b.input("overlay/etc/systemd/system-generators/none")
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	umask := unix.Umask(0o077)
	_, err := b.Image(t.Context(), Image{Kernel: kernel})
	unix.Umask(umask)
	if err == nil {
		t.Fatal("a failed build is no error")
	}
	for _, dir := range []string{"etc/systemd", "etc/systemd/system-generators"} {
		st, err := os.Stat(filepath.Join(h.cache, "work/image/tree", dir))
		if err != nil {
			t.Fatal(err)
		}
		if mode := st.Mode().Perm(); mode != 0o755 {
			t.Errorf("the mode of %s is %o", dir, mode)
		}
	}
}
