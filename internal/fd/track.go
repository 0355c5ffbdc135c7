// SPDX-License-Identifier: Apache-2.0

package fd

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

// tracking is nil but in tests: see Track.
var tracking atomic.Pointer[tracker]

type tracker struct {
	mu   sync.Mutex
	open map[int]stack
	// forgotten are those that were closed as garbage, and whose numbers others have now.
	forgotten []stack
}

// stack is the innermost callers of New, as runtime.Callers gives them, which
// is cheap: benchmarks run with tracking on, too. It is put into words only
// when somebody wants to read it.
type stack struct {
	pcs [32]uintptr
	n   int
}

func (s stack) String() string {
	var text strings.Builder
	frames := runtime.CallersFrames(s.pcs[:s.n])
	for more := s.n > 0; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		fmt.Fprintf(&text, "%s\n\t%s:%d\n", frame.Function, frame.File, frame.Line)
	}
	return text.String()
}

// Track makes the package remember which descriptors are owned and by whom
// they were opened. It is for tests: see package fdtest.
func Track() { tracking.Store(&tracker{open: map[int]stack{}}) }

// Open returns the stacks that took ownership of the descriptors that are owned at
// present, or were closed as garbage; nil without Track.
func Open() []string {
	t := tracking.Load()
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	open := make([]string, 0, len(t.open)+len(t.forgotten))
	for _, s := range t.open {
		open = append(open, s.String())
	}
	for _, s := range t.forgotten {
		open = append(open, s.String())
	}
	return open
}

func trackOpen(raw int) {
	if t := tracking.Load(); t != nil {
		var s stack
		s.n = runtime.Callers(3, s.pcs[:]) // without Callers, trackOpen and New
		t.mu.Lock()
		if old, open := t.open[raw]; open { // no owner has closed it
			t.forgotten = append(t.forgotten, old)
		}
		t.open[raw] = s
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
