// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// show is what parse made of a file, one line each.
func show(data string) string {
	settings, problems, err := parse("f", []byte(data))
	var b strings.Builder
	for _, a := range settings {
		fmt.Fprintf(&b, "%d [%s] %s=%s\n", a.Line, a.Section, a.Key, a.Value)
	}
	for _, problem := range problems {
		fmt.Fprintf(&b, "problem %v\n", problem)
	}
	if err != nil {
		fmt.Fprintf(&b, "error %v\n", err)
	}
	return b.String()
}

func TestLinesAreReadAsSystemdReadsThem(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"white space":                         {"  [S]  \n\t A B \t= \tc d \t\n", "2 [S] A B=c d\n"},
		"the value keeps its equals signs":    {"[S]\nA=b=c\n", "2 [S] A=b=c\n"},
		"no line end at the end":              {"[S]\nA=b", "2 [S] A=b\n"},
		"line ends of other systems":          {"[S]\r\nA=1\r\rB=2\n\rC=3\x00D=4\n\x00E=5\x00\nF=6", "2 [S] A=1\n4 [S] B=2\n5 [S] C=3\n6 [S] D=4\n7 [S] E=5\n9 [S] F=6\n"},
		"a byte order mark at the start":      {"\ufeff[S]\nA=b\n", "2 [S] A=b\n"},
		"a continued line":                    {"[S]\nA=b\\\n  c \\\nd\nE=f\n", "4 [S] A=b   c  d\n5 [S] E=f\n"},
		"comments within a continued line":    {"[S]\nA=b\\\n# c\\\n  ; d\ne\n", "5 [S] A=b e\n"},
		"an empty line ends a continued one":  {"[S]\nA=b\\\n\nC=d\n", "3 [S] A=b\n4 [S] C=d\n"},
		"the file ends a continued line":      {"[S]\nA=b\\", "3 [S] A=b\n"},
		"a comment is not continued":          {"[S]\n# a\\\nA=b\n", "3 [S] A=b\n"},
		"an escaped backslash does not count": {"[S]\nA=b\\\\\nC=d\\\\\\\ne\n", "2 [S] A=b\\\\\n4 [S] C=d\\\\ e\n"},
		"a continued line that ends in CR LF": {"[S]\r\nA=b\\\r\nc\r\n", "3 [S] A=b c\n"},
		"a section of no name is none":        {"[]\nA=b\n", "problem f:2: the assignment is outside of any section and is ignored\n"},
		"invalid UTF-8":                       {"[S]\nA=\xff\nB=c\n", "3 [S] B=c\nproblem f:2: the line is not valid UTF-8 and is ignored\n"},
		"a bad section header ends the file":  {"[S]\nA=b\n[T\nC=d\n", "2 [S] A=b\nerror f:3: the section header does not end in ']'\n"},
		"a control character in a header":     {"[S\x01]\n", "error f:1: the section header has characters that are not allowed\n"},
		"the longest line":                    {"[S]\nA=b#" + strings.Repeat("x", maxLine-5) + "\nC=d\n", "2 [S] A=b#" + strings.Repeat("x", maxLine-5) + "\n3 [S] C=d\n"},
		"a longer line":                       {"[S]\n#" + strings.Repeat("x", maxLine-1) + "\nC=d\n", "error f:2: the line is longer than 1048575 bytes\n"},
		"the longest continued line":          {"[S]\nA=\\\n" + strings.Repeat("x", maxLine-3) + "\n", "3 [S] A=" + strings.Repeat("x", maxLine-3) + "\n"},
		"a longer continued line":             {"[S]\nA=\\\n" + strings.Repeat("x", maxLine-2) + "\n", "error f:3: the continued line is longer than 1048576 bytes\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, show(test.file)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestValues(t *testing.T) {
	for value, want := range map[string][2]bool{
		"1": {true, true}, "Yes": {true, true}, "y": {true, true}, "TRUE": {true, true}, "t": {true, true}, "on": {true, true},
		"0": {false, true}, "no": {false, true}, "n": {false, true}, "False": {false, true}, "f": {false, true}, "off": {false, true},
		"": {}, "2": {}, "yes ": {}, "restart": {},
	} {
		if yes, ok := ParseBool(value); yes != want[0] || ok != want[1] {
			t.Errorf("ParseBool(%q) = %v, %v", value, yes, ok)
		}
	}
	for value, want := range map[string]string{
		"0": "0 true", "8": "8 true", " +8": "8 true", "0x1F": "31 true", "010": "8 true", "0o17": "15 true", "0b11": "3 true",
		"4294967295": "4294967295 true",
	} {
		if n, ok := ParseUnsigned(value); fmt.Sprint(n, ok) != want {
			t.Errorf("ParseUnsigned(%q) = %v, %v", value, n, ok)
		}
	}
	for _, value := range []string{"", "-1", "8k", "4294967296", "1_0", "09", "0x", "eight", "8 ", `"8"`} {
		if n, ok := ParseUnsigned(value); ok {
			t.Errorf("ParseUnsigned(%q) = %v", value, n)
		}
	}
}

func TestWords(t *testing.T) {
	for value, want := range map[string][]string{
		"":                     nil,
		"  ":                   nil,
		"a":                    {"a"},
		" a \t b ":             {"a", "b"},
		`"a b" 'c "d'`:         {"a b", `c "d`},
		`a"b c"d ''`:           {"ab cd", ""},
		`a\x2db \ c`:           {`a\x2db`, `\`, "c"},
		`"it's" 'a'"b" no'n'e`: {"it's", "ab", "none"},
	} {
		got, err := Words(value)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Words(%q): %v %s", value, err, diff)
		}
	}
	for _, value := range []string{`"`, `a 'b`, `"a'`} {
		if got, err := Words(value); err == nil {
			t.Errorf("Words(%q) = %q", value, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[Service]\nA=b\\\n# c\n d\n[X-E]\r\nF = \"g h\"\n"))
	f.Add([]byte("\ufeff;\\\n[S]\n=\nA\n\xff\n\\\n\\"))
	f.Add([]byte("[S]\x00A=1\n\r\x00B=2\r\n[T"))
	f.Fuzz(func(t *testing.T, data []byte) {
		settings, problems, err := parse("f", data)
		size := 0
		for _, a := range settings {
			size += len(a.Key) + len(a.Value)
			if a.Section == "" || strings.ContainsAny(a.Section+a.Key+a.Value, "\n\r\x00") {
				t.Errorf("not an assignment: %+v", a)
			}
			if strings.Trim(a.Key, whitespace) != a.Key || strings.Trim(a.Value, whitespace) != a.Value {
				t.Errorf("white space is left in %+v", a)
			}
			_, _ = Words(a.Value)
			_, _ = ParseUnsigned(a.Value)
		}
		if size > len(data) || len(settings)+len(problems) > len(data) {
			t.Errorf("%d bytes became %d assignments of %d bytes and %d problems", len(data), len(settings), size, len(problems))
		}
		if again, _, againErr := parse("f", data); fmt.Sprint(again) != fmt.Sprint(settings) || fmt.Sprint(againErr) != fmt.Sprint(err) {
			t.Error("read twice, it is not the same")
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"a.service", "a-b@c@d.service", "@.service", "a-@.service", "--a-.service"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		n, ok := parseName(name)
		if !ok {
			return
		}
		if n.String() != name {
			t.Errorf("%q became %q", name, n)
		}
		for _, dir := range dropInDirs(n) {
			if !isDropInDir(dir) {
				t.Errorf("%q has drop-ins in %q", name, dir)
			}
		}
		if template, ok := TemplateOf(name); ok != n.isInstance() || (ok && !IsTemplate(template)) {
			t.Errorf("TemplateOf(%q) = %q, %v", name, template, ok)
		}
	})
}
