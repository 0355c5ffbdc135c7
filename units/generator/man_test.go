// SPDX-License-Identifier: Apache-2.0

package generator_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/generator"
)

// The program knows a directive of [X-FDBridge] when it does not call it
// unknown; all words of this package that could be one are tried.
func TestTheManualHasAllDirectives(t *testing.T) {
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, source := range sources {
		for _, word := range wordsIn(contents(t, source), `"([A-Z][A-Za-z]+)"`) {
			if !strings.HasSuffix(source, "_test.go") && knows(t, word) {
				known = append(known, word)
			}
		}
	}
	slices.Sort(known)
	_, page, _ := strings.Cut(contents(t, "../../contrib/man/fdbridge.directives.7"), "\n.Sh OPTIONS\n")
	if diff := cmp.Diff(slices.Compact(known), wordsIn(page, `(?m)^\.It Va ([A-Za-z]+)=$`)); diff != "" {
		t.Errorf("fdbridge.directives(7) and the program differ (-program +page):\n%s", diff)
	}
}

func contents(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wordsIn returns what a pattern's group has found, sorted, each once.
func wordsIn(text, pattern string) (list []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		list = append(list, match[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// knows tells whether a unit can have a directive.
func knows(t *testing.T, directive string) bool {
	t.Helper()
	dir := t.TempDir()
	unit := "[Service]\nExecStart=/bin/true\nFileDescriptorStoreMax=1\nFileDescriptorStorePreserve=yes\n[X-FDBridge]\n" + directive + "=\n"
	if err := os.WriteFile(filepath.Join(dir, "a.service"), []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	register, problems := generator.MakeRegister("/", []string{dir}, func(string) bool { return false })
	if _, ok := register["a.service"]; !ok {
		t.Fatalf("the unit is not read: %v", problems)
	}
	return !slices.ContainsFunc(problems, func(err error) bool {
		return strings.Contains(err.Error(), "the setting "+directive+"= is unknown")
	})
}
