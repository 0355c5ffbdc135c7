// SPDX-License-Identifier: Apache-2.0

// Command fdbridgectl is for operators: see package ctl. The package has it under its
// name in the program of fdbridged, with which it shares most of its code.
package main

import (
	"os"

	"github.com/fdbridge/fdbridge/cmd/internal/ctl"
)

func main() { os.Exit(ctl.Main()) }
