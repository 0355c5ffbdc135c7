// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// columns is how wide sentences and facts are, and a terminal that does not
	// say how wide it is.
	columns = 80
	// narrowest is what is left at least of a cell that is cut.
	narrowest = 9
)

// screen is what the output is written to.
type screen struct {
	columns int // 0: no terminal; nothing is cut then, as systemctl does
	colours bool
}

// screenOf tells what f is. Like systemd it takes $COLUMNS before what the
// terminal says (columns() in src/basic/terminal-util.c, systemd 257); it has no
// colours where NO_COLOR is set to something (no-color.org).
func screenOf(f *os.File, env func(string) string) screen {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return screen{}
	}
	n, _ := strconv.Atoi(env("COLUMNS")) // 0 of what is no number
	return screen{
		columns: cmp.Or(max(n, 0), int(size.Col), columns),
		colours: env("NO_COLOR") == "" && env("TERM") != "dumb",
	}
}

// The colours, as systemd uses them.
const (
	underlined = "\x1b[4m"
	red        = "\x1b[1;31m"
	yellow     = "\x1b[1;33m"
	plain      = "\x1b[0m"
)

// in returns text in a colour, if there are any.
func (s screen) in(colour, text string) string {
	if !s.colours || colour == "" {
		return text
	}
	return colour + text + plain
}

// view is how a command shows what it has found.
type view struct {
	screen
	json bool
	full bool // nothing is cut
}

// table returns rows below a header. Where they are wider than the terminal, the
// widest of the cells that may be cut are, in the middle: at both ends is what
// tells names apart.
func (v *view) table(header []string, rows [][]string, cut ...int) string {
	all := append([][]string{header}, rows...)
	widths := make([]int, len(header))
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if v.columns > 0 && !v.full {
		narrow(widths, cut, v.columns)
	}
	var text strings.Builder
	for n, row := range all {
		line := ""
		for i, cell := range row {
			cell = ellipsize(cell, widths[i])
			line += cell
			if i < len(row)-1 {
				line += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			}
		}
		if n == 0 {
			line = v.in(underlined, line)
		}
		text.WriteString(line + "\n")
	}
	return text.String()
}

// narrow takes from the widest of the widths at cut until all fit.
func narrow(widths, cut []int, columns int) {
	total := 2 * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > columns; total-- {
		widest := slices.MaxFunc(cut, func(a, b int) int { return widths[a] - widths[b] })
		if widths[widest] <= narrowest {
			return
		}
		widths[widest]--
	}
}

// ellipsize cuts text in the middle so that it has no more than n characters.
func ellipsize(text string, n int) string {
	r := []rune(text)
	if len(r) <= n {
		return text
	}
	head := (n - 1) / 2
	return string(r[:head]) + "…" + string(r[len(r)-(n-1-head):])
}

// fact is a line "name: value".
type fact struct{ name, value string }

// facts returns them with their names right-aligned, as systemctl status has them.
func facts(list []fact) string {
	width := 0
	for _, f := range list {
		width = max(width, utf8.RuneCountInString(f.name))
	}
	var text strings.Builder
	for _, f := range list {
		text.WriteString(strings.Repeat(" ", width-utf8.RuneCountInString(f.name)+1) + f.name + ":")
		wrap(&text, width+2, width+3, f.value)
	}
	return text.String()
}

// wrap writes a paragraph, behind a space where used columns of the line are
// written already.
// Lines have no more columns than there are, but for words that are longer; those
// after the first are indented.
func wrap(text *strings.Builder, used, indent int, paragraph string) {
	for i, word := range strings.Fields(paragraph) {
		n := utf8.RuneCountInString(word)
		switch {
		case used == 0:
		case i > 0 && used+1+n > columns:
			text.WriteString("\n" + strings.Repeat(" ", indent))
			used = indent
		default:
			text.WriteString(" ")
			used++
		}
		text.WriteString(word)
		used += n
	}
	text.WriteString("\n")
}

// labelled writes a paragraph with a label in a colour before it.
func (v *view) labelled(text *strings.Builder, colour, label, paragraph string) {
	var lines strings.Builder
	wrap(&lines, 0, 4, label+": "+paragraph)
	text.WriteString(v.in(colour, label+":") + strings.TrimPrefix(lines.String(), label+":"))
}
