// SPDX-License-Identifier: Apache-2.0

//go:build vm && !soak

package test

// stride is the distance of the steps at which a delivery is killed: it takes a
// minute longer to kill it at each.
const stride = 3
