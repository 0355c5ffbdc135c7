// SPDX-License-Identifier: Apache-2.0

package bulk_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units/bulk"
	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// patience bounds what would else hang.
const patience = 20 * time.Second

// dial connects to a server, and returns a context that bounds the test.
func dial(t *testing.T, serve func(p *bulktest.Peer)) (context.Context, *bulk.Conn) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	conn, err := bulk.Dial(ctx, bulktest.Serve(t, serve))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // may have failed before
	return ctx, conn
}

// text is a call with the arguments that is answered with an s, to into.
func text(into *string, args ...any) bulk.Call {
	return bulk.Call{
		Path: "/a", Interface: "a.b", Member: "C", Args: args,
		Signature: "s", Read: func(r *bulk.Reader) { *into = r.Text() },
	}
}

// entry and unit are elements of a(suuutuusu) and a(ssssssouso).
type entry struct {
	Name               string
	Mode, Major, Minor uint32
	Ino                uint64
	Rmajor, Rminor     uint32
	Path               string
	Flags              uint32
}

type unit struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	Job                                             uint32
	Type                                            string
	JobPath                                         dbus.ObjectPath
}

func entries(n int) []entry {
	list := make([]entry, n)
	for i := range list {
		u := uint32(i)
		list[i] = entry{
			strings.Repeat("n", i%9), u, u + 1, u + 2, 1<<40 + uint64(i), u + 3, u + 4,
			strings.Repeat("/", i%7), 1<<31 + u,
		}
	}
	return list
}

func unitList(n int) []unit {
	list := make([]unit, n)
	for i := range list {
		list[i] = unit{
			fmt.Sprintf("%d.service", i), strings.Repeat("ü", i%5), "loaded", "active", "running", "",
			dbus.ObjectPath("/u" + strings.Repeat("x", i%8)), uint32(i), strings.Repeat("t", i%3), "/",
		}
	}
	return list
}

func readEntries(r *bulk.Reader) any {
	list := []entry{}
	r.Structs(func() {
		list = append(list, entry{
			r.Text(), r.Uint32(), r.Uint32(), r.Uint32(), r.Uint64(), r.Uint32(), r.Uint32(), r.Text(), r.Uint32(),
		})
	})
	return list
}

func readUnits(r *bulk.Reader) any {
	list := []unit{}
	r.Structs(func() {
		list = append(list, unit{
			r.Text(), r.Text(), r.Text(), r.Text(), r.Text(), r.Text(),
			dbus.ObjectPath(r.Text()), r.Uint32(), r.Text(), dbus.ObjectPath(r.Text()),
		})
	})
	return list
}

func readText(r *bulk.Reader) any { return r.Text() }

func readVariantText(r *bulk.Reader) any { r.Variant("s"); return r.Text() }

func readVariantUint32(r *bulk.Reader) any { r.Variant("u"); return r.Uint32() }

// answers are what the server returns, and how it is read.
var answers = []struct {
	signature string
	body      any
	read      func(*bulk.Reader) any
	want      any // body when nil
}{
	{"s", "", readText, nil},
	{"s", "a", readText, nil},
	{"s", "grüße " + strings.Repeat("x", 70_000), readText, nil},
	{"o", dbus.ObjectPath("/a/b"), readText, "/a/b"},
	{"u", uint32(1 << 31), func(r *bulk.Reader) any { return r.Uint32() }, nil},
	{"t", uint64(1 << 63), func(r *bulk.Reader) any { return r.Uint64() }, nil},
	{"v", dbus.MakeVariant(""), readVariantText, ""},
	{"v", dbus.MakeVariant("on-success"), readVariantText, "on-success"},
	{"v", dbus.MakeVariant(uint32(7)), readVariantUint32, uint32(7)},
	{"a(suuutuusu)", entries(0), readEntries, nil},
	{"a(suuutuusu)", entries(1), readEntries, nil},
	{"a(suuutuusu)", entries(2000), readEntries, nil},
	{"a(ssssssouso)", unitList(0), readUnits, nil},
	{"a(ssssssouso)", unitList(1), readUnits, nil},
	{"a(ssssssouso)", unitList(500), readUnits, nil},
}

func TestAnswersAreReadAsTheyWereWritten(t *testing.T) {
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		for i := 0; ; i++ {
			call := p.Call()
			if call == nil {
				return
			}
			p.Send(bulktest.Return(call, answers[i].body))
		}
	})
	got := make([]any, len(answers))
	want := make([]any, len(answers))
	calls := make([]bulk.Call, len(answers))
	for i, a := range answers {
		if want[i] = a.want; a.want == nil {
			want[i] = a.body
		}
		calls[i] = bulk.Call{Path: "/a", Interface: "a.b", Member: "C", Signature: a.signature,
			Read: func(r *bulk.Reader) { got[i] = a.read(r) }}
	}
	if err := conn.Do(ctx, calls, nil); err != nil {
		t.Fatal(err)
	}
	for i := range calls {
		if calls[i].Err != nil {
			t.Errorf("answer %d of type %s: %v", i, calls[i].Signature, calls[i].Err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

func TestCallsArriveAsTheyWereMade(t *testing.T) {
	type arrived struct {
		Kind                                 dbus.Type
		Path, Interface, Member, Destination any
		Signature                            string
		Body                                 []any
	}
	var got, want []arrived
	var serials []uint32
	done := make(chan struct{})
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		defer close(done)
		for call := p.Call(); call != nil; call = p.Call() {
			h := func(f dbus.HeaderField) any { return call.Headers[f].Value() }
			signature, _ := h(dbus.FieldSignature).(dbus.Signature)
			got = append(got, arrived{call.Type, h(dbus.FieldPath), h(dbus.FieldInterface), h(dbus.FieldMember),
				h(dbus.FieldDestination), signature.String(), call.Body})
			serials = append(serials, call.Serial())
			p.Send(bulktest.Return(call, ""))
		}
	})
	var calls []bulk.Call
	for i, test := range []struct {
		signature string
		args      []any
	}{
		{"", nil},
		{"s", []any{""}},
		{"s", []any{"a.service"}},
		{"ss", []any{"org.freedesktop.systemd1.Service", "Grüße"}},
		{"as", []any{[]string{}}},
		{"as", []any{[]string{""}}},
		{"asas", []any{[]string(nil), []string{"*.service", `a\\x2db.service`, "abc"}}},
		{"sass", []any{"a", []string{"x", "yz"}, "e"}},
	} {
		path, iface, member := "/p"+strings.Repeat("x", i), "a.b"+strings.Repeat("y", 2*i), "M"+strings.Repeat("z", 3*i)
		calls = append(calls, bulk.Call{Path: path, Interface: iface, Member: member, Args: test.args,
			Signature: "s", Read: func(r *bulk.Reader) { r.Text() }})
		want = append(want, arrived{dbus.TypeMethodCall, dbus.ObjectPath(path), iface, member,
			"org.freedesktop.systemd1", test.signature, test.args})
	}
	// Once all together, and once each alone: the serials go on.
	if err := conn.Do(ctx, calls, nil); err != nil {
		t.Fatal(err)
	}
	for i := range calls {
		if err := errors.Join(conn.Do(ctx, calls[i:i+1], nil), calls[i].Err); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.Close()
	<-done
	if diff := cmp.Diff(slices.Concat(want, want), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	for i, serial := range serials {
		if serial != uint32(i+1) {
			t.Fatalf("the serials are %v", serials)
		}
	}
}

func TestErrorsAreOfTheCallThatTheyAnswer(t *testing.T) {
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		calls := p.Calls(4)
		p.Send(bulktest.Fail(calls[0], "a.b.Text", "it is so"), bulktest.Fail(calls[1], "a.b.None"),
			bulktest.Fail(calls[2], "a.b.Other", dbus.ObjectPath("/no/text")), bulktest.Return(calls[3], "fine"))
	})
	var texts [4]string
	calls := make([]bulk.Call, 4)
	for i := range calls {
		calls[i] = text(&texts[i])
	}
	calls[3].Err = errors.New("of the time before")
	if err := conn.Do(ctx, calls, nil); err != nil {
		t.Fatal(err)
	}
	want := []*bulk.Error{{Name: "a.b.Text", Message: "it is so"}, {Name: "a.b.None"}, {Name: "a.b.Other"}}
	for i, said := range []string{"it is so", "a.b.None", "a.b.Other"} {
		var got *bulk.Error
		if !errors.As(calls[i].Err, &got) {
			t.Fatalf("call %d: %v", i, calls[i].Err)
		}
		if diff := cmp.Diff(want[i], got); diff != "" || got.Error() != said {
			t.Errorf("call %d says %q (-want +got):\n%s", i, got, diff)
		}
	}
	if diff := cmp.Diff([4]string{3: "fine"}, texts); diff != "" || calls[3].Err != nil {
		t.Errorf("the call that went well: %v, texts (-want +got):\n%s", calls[3].Err, diff)
	}
}

func TestSignalsArePassedOver(t *testing.T) {
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		signal := bulktest.Signal("UnitNew", "a.service", dbus.ObjectPath("/a"))
		p.Send(signal, bulktest.Signal("StartupFinished"))
		calls := p.Calls(2)
		// One that names a serial is a signal all the same.
		signal.Headers[dbus.FieldReplySerial] = dbus.MakeVariant(calls[0].Serial())
		p.Send(signal, bulktest.Return(calls[0], "a"), signal, bulktest.Return(calls[1], "b"), signal)
	})
	var a, b string
	calls := []bulk.Call{text(&a), text(&b)}
	if err := errors.Join(conn.Do(ctx, calls, nil), calls[0].Err, calls[1].Err); err != nil || a != "a" || b != "b" {
		t.Errorf("%q, %q, %v", a, b, err)
	}
}

func TestAnswersOutOfOrderFindTheirCalls(t *testing.T) {
	const n = 100
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		calls := p.Calls(n)
		slices.Reverse(calls)
		for _, call := range calls {
			p.Send(bulktest.Return(call, call.Body[0]))
		}
	})
	echo(ctx, t, conn, n, "")
}

// echo makes n calls that are to be answered with what they say.
func echo(ctx context.Context, t *testing.T, conn *bulk.Conn, n int, padding string) {
	t.Helper()
	got, want := make([]string, n), make([]string, n)
	calls := make([]bulk.Call, n)
	for i := range calls {
		want[i] = fmt.Sprint(i) + padding
		calls[i] = text(&got[i], want[i])
	}
	if err := conn.Do(ctx, calls, nil); err != nil {
		t.Fatal(err)
	}
	for i := range calls {
		if calls[i].Err != nil || got[i] != want[i] {
			t.Fatalf("call %d: %.40q, %v", i, got[i], calls[i].Err)
		}
	}
}

// What is on its way fits no socket's buffer, and there is more of it than may
// be on its way.
func TestAnswersAreReadWhileCallsAreWritten(t *testing.T) {
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		for call := p.Call(); call != nil; call = p.Call() {
			p.Send(bulktest.Return(call, call.Body[0]))
		}
	})
	echo(ctx, t, conn, 2500, strings.Repeat("x", 2000))
}

// As many calls come as have been answered, a few at a time, and never all at once when
// there is nothing left to answer.
func TestCallsFollowWhileOthersAreAnswered(t *testing.T) {
	const window, piece, all = 1024, 128, 2*1024 + 1
	ctx, conn := dial(t, func(p *bulktest.Peer) {
		var waiting []*dbus.Message
		for came := 0; came < all; {
			n := min(window-len(waiting), all-came)
			more := p.Calls(n)
			if len(more) < n {
				t.Errorf("%d more calls came, and not %d, when %d were not answered", len(more), n, len(waiting))
				return
			}
			came += n
			waiting = append(waiting, more...)
			if p.Waiting() {
				t.Errorf("more calls came when %d were not answered, the last with serial %d", len(waiting), more[n-1].Serial())
			}
			for _, call := range waiting[:piece] {
				p.Send(bulktest.Return(call, call.Body[0]))
			}
			waiting = waiting[piece:]
		}
		for _, call := range waiting {
			p.Send(bulktest.Return(call, call.Body[0]))
		}
	})
	echo(ctx, t, conn, all, "")
}
