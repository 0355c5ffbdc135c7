// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestMessagesComeOutAsTheyWentIn(t *testing.T) {
	sent := []Message{
		{Hello: &Hello{Nonce: "n", BootID: "b", Release: "7.2"}},
		{Request: &Request{Nonce: "n", ID: 1, Argv: []string{"a", "\n"}, Stdin: []byte{0, '\n', 255}}},
		{Reply: &Reply{Nonce: "n", ID: 1, Status: 3, Stdout: bytes.Repeat([]byte("x\n"), 50_000)}},
	}
	var stream bytes.Buffer
	conn := NewConn(&stream)
	for _, m := range sent {
		if err := conn.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sent {
		got, err := conn.Read()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("message differs (-sent +read):\n%s", diff)
		}
	}
	if _, err := conn.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("read past the end: %v, want io.EOF", err)
	}
}

func TestReaderFindsTheNextMessageAfterStaleBytes(t *testing.T) {
	const limit = 200 << 10
	tests := map[string]string{
		"half a message":      `{"reply":{"nonce":"old","id":7,"stdout":"aGVs`,
		"noise":               "\x00\xff\r\n\n\n",
		"other JSON":          "{}\n[1]\nnull\n{\"hello\":null}\n",
		"a line without end":  strings.Repeat("x", limit+1),
		"a line past the cap": `{"hello":{"nonce":"` + strings.Repeat("x", limit) + `"}}`,
	}
	for name, stale := range tests {
		t.Run(name, func(t *testing.T) {
			stream := bytes.NewBufferString(stale)
			conn := NewConn(stream)
			conn.max = limit
			want := Message{Hello: &Hello{Nonce: "new"}}
			if err := conn.Write(want); err != nil {
				t.Fatal(err)
			}
			got, err := conn.Read()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("message differs (-sent +read):\n%s", diff)
			}
		})
	}
}
