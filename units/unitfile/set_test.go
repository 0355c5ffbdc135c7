// SPDX-License-Identifier: Apache-2.0

package unitfile_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units/unitfile"
	"github.com/fdbridge/fdbridge/units/unitfile/unitfiletest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestSetIsWhatSystemdReads(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			set, problems := unitfile.Load(unitfiletest.Tree(t, archive), unitfile.SearchPath("", false))
			if len(problems) > 0 {
				t.Errorf("Load: %v", problems)
			}
			unitfiletest.Golden(t, file, archive, "want", dump(set))
		})
	}
}

func dump(set *unitfile.Set) string {
	var b strings.Builder
	for _, name := range set.Services() {
		u, err := set.Unit(name)
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", name, err)
			continue
		}
		fmt.Fprintf(&b, "%s: %s of %s, names %s\n", name, u.Name, u.Path, strings.Join(u.Names, " "))
		for _, a := range u.Settings {
			fmt.Fprintf(&b, "\t[%s] %s=%s (%s:%d)\n", a.Section, a.Key, a.Value, a.Path, a.Line)
		}
		for _, problem := range u.Problems {
			fmt.Fprintf(&b, "\tproblem: %v\n", problem)
		}
	}
	return b.String()
}

func load(t testing.TB, tree string) (root string, set *unitfile.Set) {
	t.Helper()
	root = unitfiletest.Tree(t, txtar.Parse([]byte(tree)))
	set, problems := unitfile.Load(root, unitfile.SearchPath("", false))
	if len(problems) > 0 {
		t.Errorf("Load: %v", problems)
	}
	return root, set
}

func TestMentionsLooksIntoFragmentAndDropIns(t *testing.T) {
	_, set := load(t, `
-- etc/systemd/system/fragment.service --
[Service]
Word=1
-- etc/systemd/system/dropin.service --
[Service]
-- etc/systemd/system/dropin.service.d/a.conf --
Word=1
-- etc/systemd/system/template@.service --
Word=1
-- etc/systemd/system/none.service --
[Service]
`)
	for name, want := range map[string]bool{
		"fragment.service": true, "dropin.service": true, "template@i.service": true, "none.service": false, "gone.service": false,
	} {
		if got := set.Mentions(name, "Word"); got != want {
			t.Errorf("Mentions(%s) = %v", name, got)
		}
	}
}

func TestAllStartsAgainAtAnEmptyValueAndLastSkipsWhatIsNotValid(t *testing.T) {
	_, set := load(t, `
-- etc/systemd/system/x.service --
[Service]
List=a
List=
List=b
List=c
[Other]
List=d
[Service]
One=7
One=seven
One=
`)
	u, err := set.Unit("x.service")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"b", "c"}, u.Settings.All("Service", "List")); diff != "" {
		t.Errorf("All: %s", diff)
	}
	isNumber := func(v string) bool { _, ok := unitfile.ParseUnsigned(v); return ok }
	if got, ok := u.Settings.Last("Service", "One", isNumber); !ok || got != "7" {
		t.Errorf("Last = %q, %v; want 7", got, ok)
	}
	if got, ok := u.Settings.Last("Service", "None", isNumber); ok {
		t.Errorf("Last of an unset key = %q", got)
	}
}

func TestUnreadableFilesAreReportedAndStopNothing(t *testing.T) {
	root, _ := load(t, `
-- etc/systemd/system/good.service --
[Service]
K=1
-- etc/systemd/system/good.service.d/dir.conf/x --
-- etc/systemd/system/link.service -> /fifo --
-- etc/systemd/system.attached --
not a directory
`)
	if err := makeFIFO(filepath.Join(root, "fifo")); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(root, "etc/systemd/system/huge.service")
	if err := os.WriteFile(huge, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<30); err != nil {
		t.Fatal(err)
	}
	set, problems := unitfile.Load(root, unitfile.SearchPath("", false))
	if len(problems) > 0 {
		t.Errorf("Load: %v", problems)
	}
	want := `good.service: good.service of /etc/systemd/system/good.service, names good.service
	[Service] K=1 (/etc/systemd/system/good.service:2)
	problem: read /etc/systemd/system/good.service.d/dir.conf: it is not a regular file
huge.service: read /etc/systemd/system/huge.service: it is larger than 16777216 bytes
link.service: read /etc/systemd/system/link.service: it is not a regular file
`
	if diff := cmp.Diff(want, dump(set)); diff != "" {
		t.Error(diff)
	}
}

func TestLoadOfMissingRootFailsAndOfEmptyRootDoesNot(t *testing.T) {
	root := t.TempDir()
	if set, problems := unitfile.Load(root, unitfile.SearchPath("", false)); len(problems) > 0 || len(set.Services()) > 0 {
		t.Errorf("empty root: %v, %v", set.Services(), problems)
	}
	set, problems := unitfile.Load(filepath.Join(root, "none"), nil)
	if len(problems) != 1 || !errors.Is(problems[0], os.ErrNotExist) || len(set.Services()) > 0 {
		t.Errorf("no root: %v, %v", set.Services(), problems)
	}
}

func TestDirectoryThatLoopsIsReported(t *testing.T) {
	root := unitfiletest.Tree(t, txtar.Parse([]byte(`
-- etc/systemd/system -> system --
-- usr/lib/systemd/system/x.service --
[Service]
`)))
	set, problems := unitfile.Load(root, unitfile.SearchPath("", false))
	if len(problems) != 1 || problems[0].Error() != "follow /etc/systemd/system: too many levels of symbolic links" {
		t.Errorf("problems: %v", problems)
	}
	if diff := cmp.Diff([]string{"x.service"}, set.Services()); diff != "" {
		t.Error(diff)
	}
}

func TestSearchPathFollowsTheEnvironment(t *testing.T) {
	usual := unitfile.SearchPath("", false)
	if len(usual) != 9 || usual[0] != "/etc/systemd/system.control" || usual[8] != "/usr/lib/systemd/system" {
		t.Errorf("usual path: %v", usual)
	}
	for env, want := range map[string][]string{
		"":                                    nil,
		"/a:/b//c/:/a":                        {"/a", "/b/c"},
		"/run/systemd/generator:/a":           {"/a"},
		"/run/systemd/generator.late:/a:":     append([]string{"/a"}, usual...),
		"/usr/lib/systemd/system:/etc/first:": append([]string{"/usr/lib/systemd/system", "/etc/first"}, usual[:8]...),
	} {
		if diff := cmp.Diff(want, unitfile.SearchPath(env, true)); diff != "" {
			t.Errorf("SearchPath(%q): %s", env, diff)
		}
	}
}
