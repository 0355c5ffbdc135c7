// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/session"
)

// T is what a check reports to.
type T = conform.T

// Check is one statement about the kernel's live update.
type Check = conform.Check[session.Kernel]
