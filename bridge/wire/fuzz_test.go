// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
)

// FuzzReceive sends packets of any contents, with up to three fds, to a server. It
// takes none but a Request, which it could send itself, and keeps no fd but the one
// that it returns.
func FuzzReceive(f *testing.F) {
	for _, seed := range []string{
		`{"op":"deliver","invocation":"0123456789abcdef0123456789abcdef"}`, `{"op":"open-session","name":"a b"}`,
		`{"op":"delivered","session":"fdbridge.a","token":18446744073709551615,"lost":1,"failed":[{"name":"x"}]}`,
		"", "{", "null", `"x"`, `[{}]`, `{"op":1}`, `{"token":-1}`, `{"name":"\ud800"}`, "{}{}",
	} {
		f.Add([]byte(seed), uint8(len(seed)%4))
	}
	f.Fuzz(func(t *testing.T, packet []byte, fds uint8) {
		raw, client := rawPair(t)
		defer unix.Close(raw)
		defer client.Close()
		var rights []byte
		if n := int(fds % 4); n > 0 {
			rights = unix.UnixRights([]int{raw, raw, raw}[:n]...)
		}
		if err := unix.Sendmsg(raw, packet, rights, nil, unix.MSG_DONTWAIT); err != nil {
			return // more than a socket takes
		}
		_ = unix.Shutdown(raw, unix.SHUT_WR) // nothing follows an empty packet
		before := len(fd.Open())
		var request wire.Request
		got, err := client.Receive(&request)
		if open := len(fd.Open()) - before; open != 0 && (open != 1 || got == nil) {
			t.Errorf("%d descriptors are owned, returned is %v", open, got)
		}
		_ = got.Close()
		switch {
		case errors.Is(err, wire.ErrPacket) || errors.Is(err, io.EOF) && len(packet) == 0:
			if got != nil {
				t.Errorf("an fd beside %v", err)
			}
			return
		case err != nil:
			t.Fatalf("Receive: %v", err)
		case fds%4 > 1:
			t.Errorf("%d fds were taken", fds%4)
		}
		data, err := json.Marshal(request)
		var again wire.Request
		if err == nil {
			err = json.Unmarshal(data, &again)
		}
		if diff := cmp.Diff(request, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("it cannot be sent again: %v (-want +got):\n%s", err, diff)
		}
	})
}
