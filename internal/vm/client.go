// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// errGone is what ended a command that was running when its kernel or its
// agent went away.
var errGone = errors.New("the guest went away while it ran")

// client is the host's end of the agent's port. It outlives the agents: each
// kernel of the guest has another one.
type client struct {
	conn *wire.Conn

	mu      sync.Mutex
	hello   *wire.Hello   // of the agent that answers now
	changed chan struct{} // closed when hello or err changes
	lastID  uint64
	waiting map[uint64]chan wire.Reply
	err     error // why the stream ended
}

// newClient reads stream until it ends; whoever made stream closes it.
func newClient(stream io.ReadWriter) *client {
	c := &client{
		conn:    wire.NewConn(stream),
		changed: make(chan struct{}),
		waiting: map[uint64]chan wire.Reply{},
	}
	go c.read()
	return c
}

func (c *client) read() {
	for {
		m, err := c.conn.Read()
		c.mu.Lock()
		switch {
		case err != nil:
			c.err = fmt.Errorf("agent's port: %w", err)
			c.renew(nil)
		case m.Hello != nil:
			c.renew(m.Hello)
		case m.Reply != nil && c.hello != nil && m.Reply.Nonce == c.hello.Nonce:
			if reply, ok := c.waiting[m.Reply.ID]; ok {
				delete(c.waiting, m.Reply.ID)
				reply <- *m.Reply
			}
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// renew fails what the agent before was asked, and wakes who waits for this one.
func (c *client) renew(hello *wire.Hello) {
	c.hello = hello
	for id, reply := range c.waiting {
		delete(c.waiting, id)
		close(reply)
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// greeted waits for an agent of a boot other than the one named.
func (c *client) greeted(ctx context.Context, not string) (wire.Hello, error) {
	for {
		c.mu.Lock()
		hello, err, changed := c.hello, c.err, c.changed
		c.mu.Unlock()
		switch {
		case err != nil:
			return wire.Hello{}, err
		case hello != nil && hello.BootID != not:
			return *hello, nil
		}
		select {
		case <-ctx.Done():
			return wire.Hello{}, ctx.Err()
		case <-changed:
		}
	}
}

// ended says whether the stream has ended.
func (c *client) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// bootID returns that of the agent that answers now; empty when none does.
func (c *client) bootID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hello == nil {
		return ""
	}
	return c.hello.BootID
}

// call sends one request to the present agent and waits for its reply.
func (c *client) call(ctx context.Context, r wire.Request) (wire.Reply, error) {
	c.mu.Lock()
	if c.hello == nil {
		err := c.err
		c.mu.Unlock()
		return wire.Reply{}, errors.Join(errors.New("no agent has said hello"), err)
	}
	c.lastID++
	r.Nonce, r.ID = c.hello.Nonce, c.lastID
	answer := make(chan wire.Reply, 1)
	c.waiting[r.ID] = answer
	c.mu.Unlock()
	defer c.forget(r.ID)

	sent := make(chan error, 1)
	go func() { sent <- c.conn.Write(wire.Message{Request: &r}) }()
	for {
		select {
		case err := <-sent:
			if err != nil {
				return wire.Reply{}, err
			}
			sent = nil
		case reply, ok := <-answer:
			if !ok {
				return wire.Reply{}, errGone
			}
			if reply.Error != "" {
				return reply, errors.New(reply.Error)
			}
			return reply, nil
		case <-ctx.Done():
			return wire.Reply{}, ctx.Err()
		}
	}
}

func (c *client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}
