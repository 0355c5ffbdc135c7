// SPDX-License-Identifier: Apache-2.0

// Command impostor sends fdbridged what no client of fdbridge's would: each of its
// arguments as one packet, on a connection of its own. It prints each answer, and
// whether there was an fd with it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// timeout bounds the wait for an answer; fdbridged gives up before that.
const timeout = time.Minute

func main() {
	for _, packet := range os.Args[1:] {
		answer, withFD, err := ask(packet)
		if err != nil {
			fmt.Fprintf(os.Stderr, "impostor: %s: %v\n", packet, err)
			os.Exit(1)
		}
		fmt.Printf("fd %v: %s\n", withFD, answer)
	}
}

func ask(packet string) (answer json.RawMessage, withFD bool, err error) {
	conn, err := wire.Dial(wire.Path)
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, false, err
	}
	if err := conn.Send(json.RawMessage(packet), nil); err != nil {
		return nil, false, err
	}
	f, err := conn.Receive(&answer)
	if err != nil {
		return nil, false, err
	}
	return answer, f != nil, f.Close()
}
