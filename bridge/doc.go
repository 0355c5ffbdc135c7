// SPDX-License-Identifier: Apache-2.0

// Package bridge has the steps of fdbridge: it reads the opted-in units'
// stores and puts them into sessions before the update (Preserver, at the times that Update
// decides), holds the
// sessions after it (Holder), hands them to the units that they belong to, and
// keeps units from being forgotten (Server).
//
// It knows the policy; the system calls are in package session, systemd is in
// package units, the formats are in package kho.
package bridge
