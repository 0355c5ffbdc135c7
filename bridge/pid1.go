// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"sync"

	"github.com/fdbridge/fdbridge/units"
)

// Line is a connection to PID 1 that is made anew when it has ended, as it
// does each time PID 1 re-executes itself.
type Line struct {
	Socket string // units.PrivateSocket but in tests

	mu      sync.Mutex
	manager *units.Manager
}

// Manager returns the connection, which stays the Line's.
func (l *Line) Manager(ctx context.Context) (*units.Manager, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.manager != nil {
		select {
		case <-l.manager.Done():
			_ = l.manager.Close() // it has ended
			l.manager = nil
		default:
			return l.manager, nil
		}
	}
	manager, err := units.Connect(ctx, l.Socket)
	if err != nil {
		return nil, err
	}
	l.manager = manager
	return manager, nil
}

// Close ends the connection.
func (l *Line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.manager == nil {
		return nil
	}
	return l.manager.Close()
}
