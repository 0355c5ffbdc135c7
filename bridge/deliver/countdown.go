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
}

func startCountdown(whole time.Duration, over func()) *countdown {
	return &countdown{timer: time.AfterFunc(whole, over), whole: whole, left: whole, since: time.Now()}
}

// pause stops it until resume or restart, unless its time has passed.
func (c *countdown) pause() {
	if c.timer.Stop() {
		c.left -= time.Since(c.since)
		return
	}
	c.left = -1
}

func (c *countdown) resume() {
	if c.left < 0 {
		return // it is over
	}
	c.since = time.Now()
	c.timer.Reset(c.left)
}

// restart gives it all of its time again, unless that has passed.
func (c *countdown) restart() {
	c.pause()
	if c.left >= 0 {
		c.left = c.whole
	}
	c.resume()
}
