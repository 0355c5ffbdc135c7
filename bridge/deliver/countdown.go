// SPDX-License-Identifier: Apache-2.0

package deliver

import "time"

// countdown calls a function when its time has passed, of which none does while it is
// paused. It belongs to one goroutine.
type countdown struct {
	timer *time.Timer
	whole time.Duration
	left  time.Duration
	since time.Time // when it went on last
	over  bool
}

func startCountdown(whole time.Duration, over func()) *countdown {
	return &countdown{timer: time.AfterFunc(whole, over), whole: whole, left: whole, since: time.Now()}
}

// pause stops it until resume or restart, unless it has called its function.
func (c *countdown) pause() {
	c.over = c.over || !c.timer.Stop()
	c.left = max(c.left-time.Since(c.since), 0)
}

func (c *countdown) resume() {
	if !c.over {
		c.since = time.Now()
		c.timer.Reset(c.left)
	}
}

// restart gives it all of its time again, unless it has called its function.
func (c *countdown) restart() {
	c.pause()
	c.left = c.whole
	c.resume()
}
