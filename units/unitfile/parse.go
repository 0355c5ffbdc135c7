// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// maxLine bounds a line, and a line put together from continued ones:
	// LONG_LINE_MAX in systemd's src/basic/fileio.h.
	maxLine = 1 << 20

	whitespace    = " \t\n\r"
	endsOfLine    = "\n\r\x00"
	byteOrderMark = "\ufeff"
)

// Assignment is one "Key=Value" line of a file.
type Assignment struct {
	Section string
	Key     string
	Value   string // without the white space around it; quotes are kept
	Path    string // the file, below the root
	Line    int    // where the assignment ends, from 1
}

// parser is config_parse() of systemd's src/shared/conf-parser.c, but that it
// keeps sections and keys that systemd does not know.
type parser struct {
	path     string
	line     int
	section  string // "" before the first one
	settings Settings
	problems []error
}

// parse returns the assignments of a file and its bad lines, which systemd
// ignores with a warning. The error is what makes systemd stop reading: then
// the assignments are those before it.
func parse(path string, data []byte) (Settings, []error, error) {
	p := &parser{path: path}
	err := p.parse(data)
	if err != nil {
		err = p.errorf("%w", err)
	}
	return p.settings, p.problems, err
}

func (p *parser) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: "+format, append([]any{p.path, p.line}, args...)...)
}

func (p *parser) parse(data []byte) error {
	var continued []byte
	marked := false
	for len(data) > 0 {
		var line []byte
		line, data = cutLine(data)
		p.line++
		if len(line) >= maxLine {
			return fmt.Errorf("the line is longer than %d bytes", maxLine-1)
		}
		if isComment(line) {
			continue
		}
		if !marked {
			line, marked = bytes.CutPrefix(line, []byte(byteOrderMark))
		}
		if len(continued)+len(line) > maxLine {
			return fmt.Errorf("the continued line is longer than %d bytes", maxLine)
		}
		if body, ok := cutBackslash(line); ok {
			continued = append(append(continued, body...), ' ')
			continue
		}
		if err := p.logical(string(append(continued, line...))); err != nil {
			return err
		}
		continued = continued[:0]
	}
	if len(continued) > 0 {
		p.line++
		return p.logical(string(continued))
	}
	return nil
}

// cutLine takes one line off data. The end of a line is LF, CR or NUL, or a
// pair of LF and CR in either order, each with a NUL after it or not, as in
// read_line_full() of systemd's src/basic/fileio.c.
func cutLine(data []byte) (line, rest []byte) {
	end := bytes.IndexAny(data, endsOfLine)
	if end < 0 {
		return data, nil
	}
	next := end + 1
	for next < len(data) && data[next-1] != 0 &&
		bytes.IndexByte(data[end:next], data[next]) < 0 && strings.IndexByte(endsOfLine, data[next]) >= 0 {
		next++
	}
	return data[:end], data[next:]
}

func isComment(line []byte) bool {
	line = bytes.TrimLeft(line, whitespace)
	return len(line) > 0 && (line[0] == '#' || line[0] == ';')
}

// cutBackslash takes off the backslash at the end that continues the line on
// the next one. A backslash that another one escapes does not.
func cutBackslash(line []byte) ([]byte, bool) {
	body := bytes.TrimRight(line, `\`)
	if (len(line)-len(body))%2 == 0 {
		return line, false
	}
	return line[:len(line)-1], true
}

// logical takes in one line without continuations.
func (p *parser) logical(line string) error {
	line = strings.Trim(line, whitespace)
	switch {
	case line == "":
	case !utf8.ValidString(line):
		p.problem("the line is not valid UTF-8 and is ignored")
	case line[0] == '[':
		return p.header(line)
	case p.section == "":
		p.problem("the assignment is outside of any section and is ignored")
	default:
		p.assign(line)
	}
	return nil
}

func (p *parser) problem(text string) { p.problems = append(p.problems, p.errorf("%s", text)) }

func (p *parser) header(line string) error {
	name, ok := strings.CutSuffix(line[1:], "]")
	if !ok {
		return errors.New("the section header does not end in ']'")
	}
	for _, c := range []byte(name) {
		if c < ' ' || c == 0x7f || strings.IndexByte(`"'\`, c) >= 0 {
			return errors.New("the section header has characters that are not allowed")
		}
	}
	p.section = name
	return nil
}

func (p *parser) assign(line string) {
	key, value, ok := strings.Cut(line, "=")
	switch {
	case !ok:
		p.problem("the line has no '=' and is ignored")
	case key == "":
		p.problem("the line has no key before '=' and is ignored")
	default:
		p.settings = append(p.settings, Assignment{
			Section: p.section,
			Key:     strings.Trim(key, whitespace),
			Value:   strings.Trim(value, whitespace),
			Path:    p.path,
			Line:    p.line,
		})
	}
}
