// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/bus"
)

const manualPage = "../../contrib/man/org.fdbridge.Bridge1.5"

// inFull are the interfaces that the manual shows; those that every object has it
// only names.
func inFull(name string) bool {
	return strings.HasPrefix(name, bus.Name+".") || name == "org.freedesktop.DBus.ObjectManager"
}

// shown writes introspection data as the manual shows them, in the manner of systemd's.
func shown(path string, n node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s {\n", path)
	slices.SortStableFunc(n.Interfaces, func(x, y ifaceNode) int { return rank(x.Name) - rank(y.Name) })
	for _, i := range n.Interfaces {
		if !inFull(i.Name) {
			fmt.Fprintf(&b, "  interface %s { ... };\n", i.Name)
			continue
		}
		fmt.Fprintf(&b, "  interface %s {\n", i.Name)
		showMembers(&b, "methods", i.Methods)
		showMembers(&b, "signals", i.Signals)
		if len(i.Properties) > 0 {
			b.WriteString("    properties:\n")
		}
		for _, p := range i.Properties {
			for _, a := range p.Annotations {
				fmt.Fprintf(&b, "      @%s(\"%s\")\n", a.Name, a.Value)
			}
			fmt.Fprintf(&b, "      %s %s %s;\n", map[string]string{"read": "readonly"}[p.Access], p.Type, p.Name)
		}
		b.WriteString("  };\n")
	}
	b.WriteString("};\n")
	return b.String()
}

// rank puts what is shown in full first.
func rank(name string) int {
	if inFull(name) {
		return 0
	}
	return 1
}

func showMembers(b *strings.Builder, kind string, members []member) {
	if len(members) > 0 {
		fmt.Fprintf(b, "    %s:\n", kind)
	}
	for _, m := range members {
		var args []string
		for _, a := range m.Args {
			args = append(args, strings.TrimSpace(a.Direction+" "+a.Type+" "+a.Name))
		}
		head := "      " + m.Name + "("
		fmt.Fprintf(b, "%s%s);\n", head, strings.Join(args, ",\n"+strings.Repeat(" ", len(head))))
	}
}

func manual(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(manualPage)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

func TestTheManualShowsWhatIntrospectionTells(t *testing.T) {
	b := start(t)
	b.set(func(b *backend) { b.units[1].Unit = "example.service" })
	var blocks []string
	for _, part := range strings.Split(manual(t), ".EX\n")[1:] {
		if block, _, _ := strings.Cut(part, ".EE\n"); strings.HasPrefix(block, "node ") {
			blocks = append(blocks, block)
		}
	}
	var want []string
	for _, path := range []string{bus.Path, bus.Path + "/unit/example_2eservice"} {
		want = append(want, shown(path, b.introspect(path)))
	}
	if diff := cmp.Diff(want, blocks); diff != "" {
		t.Errorf("the manual shows something else than introspection (-introspection +manual):\n%s", diff)
	}
}

// Every member, every error and every state has its place in the text.
func TestTheManualDescribesWhatThereIs(t *testing.T) {
	b := start(t)
	var text []string
	for part := range strings.SplitSeq(manual(t), ".EX\n") {
		_, rest, found := strings.Cut(part, ".EE\n")
		if !found {
			rest = part
		}
		text = append(text, rest)
	}
	page := strings.ReplaceAll(strings.Join(text, "\n"), `\-`, "-")
	for _, path := range []string{bus.Path, unitA} {
		for _, i := range b.introspect(path).Interfaces {
			if !strings.HasPrefix(i.Name, bus.Name+".") {
				continue
			}
			for _, m := range i.Methods {
				if !strings.Contains(page, "\n.B "+m.Name+"()\n") {
					t.Errorf("the manual does not describe the method %s", m.Name)
				}
			}
			for _, p := range i.Properties {
				if !strings.Contains(page, "\n.I "+p.Name+"\n") {
					t.Errorf("the manual does not describe the property %s of %s", p.Name, i.Name)
				}
			}
		}
	}
	for name, value := range constants(t) {
		value = strings.TrimPrefix(value, "org.freedesktop.DBus.Error.")
		if !slices.ContainsFunc([]string{".B %s\n", ".BR %s ,\n", ".BR %s .\n", ".I %s\n", ".IR %s ,\n", ".IR %s .\n"},
			func(format string) bool { return strings.Contains(page, fmt.Sprintf(format, value)) }) {
			t.Errorf("the manual does not name %s, which is %s", value, name)
		}
	}
}

// constants returns the names of errors and states in the package's source, with
// what they stand for.
func constants(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, file := range []string{"errors.go", "manager.go", "unit.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 || !slices.ContainsFunc([]string{"err", "state", "unit"},
				func(kind string) bool { return strings.HasPrefix(spec.Names[0].Name, kind) }) {
				return true
			}
			prefix, value := "", spec.Values[0]
			if sum, ok := value.(*ast.BinaryExpr); ok { // Name + ".X"
				prefix, value = bus.Name, sum.Y
			}
			if literal, ok := value.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				found[spec.Names[0].Name] = prefix + text
			}
			return true
		})
	}
	if len(found) < 20 {
		t.Fatalf("only %d errors and states were found", len(found))
	}
	return found
}
