// SPDX-License-Identifier: Apache-2.0

//go:build vm && !soak

package test

import "time"

// How much the scenarios do in make test, which is to end while one waits for it; make
// soak runs those with a part of it in full: soak_test.go.
const (
	stride    = 4     // the distance of the steps at which a delivery is killed
	middles   = 1     // how many of those at which it is interfered with otherwise
	manyUnits = 6     // with one fd each
	manyFiles = 500   // of one unit
	thorough  = false // each of the ways in which the device can be busy or an update called off

	commandBound  = 3 * time.Minute // a command in the guest
	scenarioBound = 15 * time.Minute
)
