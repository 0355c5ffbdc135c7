// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestColoursAndWidthAreTheTerminals(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	for name, test := range map[string]struct {
		f    *os.File
		wide uint16
		env  map[string]string
		want screen
	}{
		"a file":                       {file, 0, map[string]string{"COLUMNS": "70"}, screen{}},
		"a terminal":                   {terminal, 132, nil, screen{132, true}},
		"one that is not known":        {terminal, 0, nil, screen{80, true}},
		"one that is told otherwise":   {terminal, 132, map[string]string{"COLUMNS": "70"}, screen{70, true}},
		"one that is told nonsense":    {terminal, 132, map[string]string{"COLUMNS": "-1"}, screen{132, true}},
		"one without colours":          {terminal, 132, map[string]string{"NO_COLOR": "1"}, screen{132, false}},
		"one that can have no colours": {terminal, 132, map[string]string{"TERM": "dumb"}, screen{132, false}},
	} {
		if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: test.wide}); err != nil {
			t.Fatal(err)
		}
		if got := screenOf(test.f, func(key string) string { return test.env[key] }); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestNamesAreCutInTheMiddle(t *testing.T) {
	const name = "0123456789"
	for n, want := range map[int]string{20: name, 10: name, 9: "0123…6789", 8: "012…6789", 1: "…"} {
		if got := ellipsize(name, n); got != want {
			t.Errorf("ellipsize to %d: %q, want %q", n, got, want)
		}
	}
}

func TestNoCellIsCutToNothing(t *testing.T) {
	v := view{screen: screen{columns: 10}}
	got := v.table([]string{"UNIT", "FDS"}, [][]string{{"a-long-name.service", "1"}}, 0)
	if want := "UNIT       FDS\na-lo…vice  1\n"; got != want {
		t.Errorf("table: %q, want %q", got, want)
	}
}

func TestWordsThatAreTooLongHaveLinesOfTheirOwn(t *testing.T) {
	word := strings.Repeat("x", columns)
	for used, want := range map[int]string{
		0: "a\n    " + word + "\n    b\n",
		9: " a\n    " + word + "\n    b\n",
	} {
		var got strings.Builder
		wrap(&got, used, 4, "a "+word+" b")
		if got.String() != want {
			t.Errorf("wrap from column %d: %q, want %q", used, got.String(), want)
		}
	}
}
