// SPDX-License-Identifier: Apache-2.0

package units

import "context"

// Store returns a service that is loaded, with its directives, who it is, and
// what is in its store, in which there may be nothing.
func (r *Reader) Store(ctx context.Context, unit string) (*Store, error) {
	s := &Store{Unit: unit}
	err := r.connected(ctx, func(ctx context.Context, a asker) error {
		var q questions
		q.all(s, nil)
		q.property(s, serviceInterface, "FileDescriptorStoreMax", &s.Max)
		return q.ask(ctx, a, func(*Store) {})
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}
