// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/config"
)

// wordsIn returns what a pattern's group has found in a file, sorted, each once.
func wordsIn(t *testing.T, file, pattern string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(data), -1) {
		list = append(list, match[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// The program knows a setting when it does not call it unknown; all of its words
// that could be one are tried.
func TestTheManualAndTheFileHaveAllSettings(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "etc/fdbridge/fdbridge.conf")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, word := range wordsIn(t, "config.go", `"([A-Z][A-Za-z]+)"`) {
		if err := os.WriteFile(file, []byte("[Bridge]\n"+word+"=\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, problems := config.Load(root)
		if len(problems) == 0 || !strings.Contains(problems[0].Error(), "unknown") {
			known = append(known, word)
		}
	}
	if diff := cmp.Diff(known, wordsIn(t, "../../contrib/man/fdbridge.conf.5", `(?m)^\.It Va ([A-Za-z]+)=`)); diff != "" {
		t.Errorf("fdbridge.conf(5) and the program differ (-program +page):\n%s", diff)
	}
	if diff := cmp.Diff(known, wordsIn(t, "../../contrib/fdbridge.conf", `(?m)^#([A-Za-z]+)=`)); diff != "" {
		t.Errorf("fdbridge.conf and the program differ (-program +file):\n%s", diff)
	}
}
