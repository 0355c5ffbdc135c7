// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"fmt"
	"testing"

	"github.com/fdbridge/fdbridge/bridge"
)

// The cost of capture and preserve against the fake kernel: per unit with one
// fd each, and per fd in one unit.
func BenchmarkPreserve(b *testing.B) {
	for _, size := range []struct{ units, fds int }{{1, 1}, {100, 1}, {1, 100}, {1, 900}, {100, 20}} {
		b.Run(fmt.Sprintf("units=%d/fds=%d", size.units, size.fds), func(b *testing.B) {
			w := newWorld(b)
			for u := range size.units {
				unit := fmt.Sprintf("u%d.service", u)
				w.add(unit, "yes")
				for f := range size.fds {
					w.put(unit, fmt.Sprintf("f%d", f), "contents")
				}
			}
			preserver := w.preserver()
			run := func() *bridge.Preserved {
				preserved, err := preserver.Run(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				return preserved
			}
			for b.Loop() {
				if err := run().Close(); err != nil {
					b.Fatal(err)
				}
			}
			total := float64(b.N * size.units)
			b.ReportMetric(float64(b.Elapsed().Microseconds())/total, "us/unit")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/total/float64(size.fds), "us/fd")
		})
	}
}
