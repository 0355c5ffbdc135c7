// SPDX-License-Identifier: Apache-2.0

package fd

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// tracking is nil but in tests: see Track.
var tracking atomic.Pointer[tracker]

type tracker struct {
	mu   sync.Mutex
	open map[int]string
}

// Track makes the package remember which descriptors are owned and by whom
// they were opened. It is for tests: see package fdtest.
func Track() { tracking.Store(&tracker{open: map[int]string{}}) }

// Open returns the descriptors that are owned at present with the stack that
// took ownership of each; nil without Track.
func Open() map[int]string {
	t := tracking.Load()
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	open := make(map[int]string, len(t.open))
	for raw, stack := range t.open {
		open[raw] = stack
	}
	return open
}

func trackOpen(raw int) {
	if t := tracking.Load(); t != nil {
		stack := string(debug.Stack())
		t.mu.Lock()
		t.open[raw] = stack
		t.mu.Unlock()
	}
}

func trackClose(raw int) {
	if t := tracking.Load(); t != nil {
		t.mu.Lock()
		delete(t.open, raw)
		t.mu.Unlock()
	}
}
