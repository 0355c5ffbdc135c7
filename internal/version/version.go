// SPDX-License-Identifier: Apache-2.0

// Package version tells which fdbridge this is.
package version

// Version is set when a package is built.
var Version = "0.0.0~devel"
