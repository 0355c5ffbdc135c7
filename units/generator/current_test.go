// SPDX-License-Identifier: Apache-2.0

package generator_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/units/generator"
)

func TestCurrentFactsAreThoseOfTheLastReload(t *testing.T) {
	const path = "etc/systemd/system/a.service"
	o := options(t, device,
		txtar.File{Name: path, Data: []byte(optIn + "User=first\n")},
		txtar.File{Name: "etc/systemd/system/t@.service", Data: []byte(optIn + "User=any\n")},
		txtar.File{Name: "etc/systemd/system/left.service", Data: []byte(optIn + "User=l\n[X-FDBridge]\nPreserve=no\n")},
		txtar.File{Name: "etc/systemd/system/u.service", Data: []byte(optIn + "User=%u\n")})
	current := generator.Current{Options: o}
	check := func(unit, user string, loaded bool) {
		t.Helper()
		if facts, ok := current.Facts(unit); facts.User != user || ok != loaded {
			t.Errorf("%s: user %q, loaded %v; want %q, %v", unit, facts.User, ok, user, loaded)
		}
	}
	write := func(user string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(o.Root, path), []byte(optIn+"User="+user+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reload := func() {
		t.Helper()
		err := os.RemoveAll(o.Dir)
		if err == nil {
			err = os.Mkdir(o.Dir, 0o755)
		}
		if err == nil {
			_, err = generator.Run(o)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	check("a.service", "first", false) // the generator has not run
	reload()
	check("a.service", "first", true)
	write("second")
	check("a.service", "first", true)
	reload()
	for range 2 {
		check("a.service", "second", true)
		check("t@i.service", "any", false)
		check("u.service", "%u", false)
		check("left.service", "l", false)
		check("none.service", "", false)
	}
	const own = "etc/systemd/system/fdbridged.service"
	if err := os.WriteFile(filepath.Join(o.Root, own), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	reload()
	check("a.service", "second", false) // fdbridged is masked, and is before no unit
	write("third")
	if err := os.RemoveAll(o.Dir); err != nil {
		t.Fatal(err)
	}
	check("a.service", "third", false)
	write("fourth")
	check("a.service", "fourth", false)
}
