// SPDX-License-Identifier: Apache-2.0

// Package test has the scenarios that run in a VM, with a real kernel under a
// real systemd. They are behind the build tag vm, because they take minutes and
// need the test bed: make test-vm builds what they need and runs them.
//
// What can be tested without a kernel and a systemd stands beside the code.
package test
