// SPDX-License-Identifier: Apache-2.0

// Package units is fdbridge's view of systemd: which units have opted in,
// what their fd stores hold, the fds themselves, and the pins that keep a
// stopped unit and its store from being forgotten.
//
// It talks to PID 1 over its private socket, /run/systemd/private, which
// answers from early boot to late shutdown, when the system bus is not there.
// The notify protocol is in package notify, the reading of unit files in
// package unitfile, the generator's output in package generator; programs that
// must stay small use those alone.
//
// What is done with stores (sessions, manifests, policy) does not belong here.
package units
