// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadsAreNamed(t *testing.T) {
	for want, l := range map[string]load{
		"20 x 20 x 4 KiB":                 counted,
		"1 x 8 x 8 MiB, sealed":           {units: 1, files: 8, size: 8 * mib, sealed: true},
		"1 x 1 x 1 GiB, sealed, prepared": {units: 1, files: 1, size: 1024 * mib, sealed: true, prepare: true},
	} {
		if l.String() != want {
			t.Errorf("it is named %q, want %q", l, want)
		}
	}
	if got := (load{files: 8, size: 4 * kib}).memfds(); got != "8 4096" {
		t.Errorf("the memfds are %q", got)
	}
	if got := (load{files: 1, size: mib, sealed: true}).memfds(); got != "1 1048576 sealed" {
		t.Errorf("the memfds are %q", got)
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		list []float64
		want float64
	}{
		{[]float64{7}, 7},
		{[]float64{4, 1}, 2.5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 4}, 3},
	} {
		if got := median(test.list); got != test.want {
			t.Errorf("the median of %v is %v, want %v", test.list, got, test.want)
		}
	}
}

func TestMediansAreOfEachFigureByItself(t *testing.T) {
	got := medians([]figures{{loop: 1, serve: 30}, {loop: 3, serve: 20, unit: -2}, {loop: 2, serve: 10, unit: -1}})
	if want := (figures{loop: 2, serve: 20, unit: -1}); got != want {
		t.Errorf("the medians are %+v, want %+v", got, want)
	}
}

func TestRowsHaveACellForEachColumn(t *testing.T) {
	f := figures{loop: 0.0104, ready: 1.25, own: 1.25, down: 2.345, start: 7, unit: -0.015, first: 8, last: 9.5, preserve: 9.87e6, pid1: 16.04e6}
	got := f.row(load{units: 1, files: 10, size: 4 * kib}, system{name: "s"})
	want := "| 1 x 10 x 4 KiB | s | 10 ms | 1250 ms | 1250 ms | 2.35 s | 7.00 s | -15 ms | 8.00 s | 9.50 s | 9.9 MB | 16.0 MB |  |\n"
	if got != want {
		t.Errorf("the row is %q, want %q", got, want)
	}
	names, rule, _ := strings.Cut(tableHeader(), "\n")
	cells := strings.Count(want, "|")
	if strings.Count(names, "|") != cells || strings.Count(rule, "|") != cells {
		t.Errorf("the head has another number of cells than %d:\n%s\n%s", cells, names, rule)
	}
	for _, c := range columns {
		if !strings.Contains(legend(), "\n"+c.name+": ") {
			t.Errorf("the legend does not have %q", c.name)
		}
	}
}

func TestAFailureIsARow(t *testing.T) {
	err := errors.New("status 1\n| said this\n" + strings.Repeat("x", 1000))
	got := failedRow(counted, system{name: "s"}, err)
	want := "| 20 x 20 x 4 KiB | s | failed: status 1 / said this " + strings.Repeat("x", 179) + " |\n"
	if got != want {
		t.Errorf("the row is %q, want %q", got, want)
	}
}

func TestRatios(t *testing.T) {
	systems := []system{{name: "a"}, {name: "b"}, {name: "c", alone: true}}
	small, large := loads[0], load{units: 1, files: 1, size: 1024 * mib, sealed: true}
	prepared := large
	prepared.prepare = true
	got := ratios(systems, map[measured]figures{
		{small, "a"}:    {loop: 0.010, ready: 0.110, start: 2},
		{small, "b"}:    {loop: 0.020, ready: 0.015, start: 5},
		{small, "c"}:    {loop: 0.010, ready: 0.200, start: 4},
		{large, "a"}:    {loop: 0.8, ready: 1, start: 2},
		{large, "c"}:    {loop: 0.8, ready: 2, start: 4},
		{prepared, "a"}: {loop: 0.8, ready: 0.1, start: 1},
		{prepared, "b"}: {loop: 0.8, ready: 0.1, start: 1}, // not measured unprepared
	})
	rows := ""
	for row := range strings.Lines(got) {
		if strings.Contains(row, "iB") {
			rows += row
		}
	}
	want := `| 1 x 10 x 4 KiB | a | 0.55 | 0.50 | 11.00 |  | 10.000 ms | 100.00 ms |
| 1 x 10 x 4 KiB | b | 0.07 | 1.25 | 0.75 |  | -0.500 ms | -5.00 ms |
| 1 x 1 x 1 GiB, sealed | a | 0.50 | 0.50 | 1.25 |  | 200.000 ms | 200.00 ms |
| 1 x 1 x 1 GiB, sealed, prepared | a | 0.05 | 0.25 | 0.12 | 0.10 | -700.000 ms | -700.00 ms |
| 1 x 1 x 1 GiB, sealed, prepared | b | 0.05 | 0.25 | 0.12 |  | -700.000 ms | -700.00 ms |
`
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("the ratios differ (-want +got):\n%s", diff)
	}
}
