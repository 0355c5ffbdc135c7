// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// What a client can ask for: the Op of a Request.
//
//	fdbridge-inject                   fdbridged
//	deliver                  -->
//	                         <--      Grant, with the session's fd if one is held
//	delivered, what arrived  -->
//	                         <--      Settled
//
//	fdbridgectl                       fdbridged
//	list                     -->
//	                         <--      Answer with a Unit, once each; with End
//	status                   -->
//	                         <--      Answer with a Status; with a Problem or Lost, once each; with End
const (
	OpDeliver   = "deliver"
	OpDelivered = "delivered"
	OpList      = "list"
	OpStatus    = "status"
)

// Request is what a client sends.
type Request struct {
	Op string `json:"op"`
	// Stored, Max and Failed go with OpDelivered: how many fds were put into
	// the unit's store, for how many it has room, and which could not be
	// brought there.
	Stored int    `json:"stored,omitempty"`
	Max    int    `json:"max,omitempty"`
	Failed []Lost `json:"failed,omitempty"`
}

// Grant answers OpDeliver.
type Grant struct {
	// Error says why nothing is granted although something may be held.
	Error string `json:"error,omitempty"`
	Unit  string `json:"unit,omitempty"`
	// Session is the name of the session whose fd comes with this packet;
	// empty when nothing is held for the unit.
	Session string `json:"session,omitempty"`
}

// Settled answers OpDelivered.
type Settled struct {
	// Error says what went wrong; the session is then held on.
	Error string `json:"error,omitempty"`
}

// Answer is one packet of the answer to OpList or OpStatus; one of its fields
// is set.
type Answer struct {
	Status *Status `json:"status,omitempty"`
	Unit   *Unit   `json:"unit,omitempty"`
	Lost   *Lost   `json:"lost,omitempty"`
	// Problem is a sentence about what went wrong in this boot.
	Problem string `json:"problem,omitempty"`
	Error   string `json:"error,omitempty"`
	End     bool   `json:"end,omitempty"`
}

// The State of a Unit.
const (
	StateOptedIn = "opted-in" // its store will be carried
	StateHeld    = "held"     // fds wait for it to be started
)

// Unit is what fdbridge knows of one unit.
type Unit struct {
	Unit  string `json:"unit"`
	State string `json:"state"`
	// Stored is the number of fds in the unit's store at present.
	Stored int `json:"stored"`
	// Held is the number of fds that wait for the unit, HeldBytes their size.
	Held      int   `json:"held"`
	HeldBytes int64 `json:"held_bytes"`
	// Lost is the number of fds that the last live update did not carry.
	Lost    int    `json:"lost"`
	Session string `json:"session,omitempty"` // the one that is held
}

// Lost is an fd that did not get where it belongs.
type Lost struct {
	Unit   string `json:"unit"`
	Name   string `json:"name"`
	Type   string `json:"type,omitempty"`
	Reason string `json:"reason"`
}

// Status is the state of fdbridge and of the last live update.
type Status struct {
	Version string `json:"version"`
	Kernel  Kernel `json:"kernel"`
	// Handover is what the last live update brought; nil when this kernel was
	// started without one, or by one without fdbridge.
	Handover *Handover `json:"handover,omitempty"`
	// Held counts the units that fds wait for.
	Held int `json:"held"`
}

// Kernel is what is known of the running kernel's live-update support.
type Kernel struct {
	Release string `json:"release"`
	BootID  string `json:"boot_id"`
	Device  bool   `json:"device"` // /dev/liveupdate is there
	// LiveUpdateNumber counts the live updates since the machine was switched
	// on; Previous is the release of the kernel before. Where they are not
	// known, Note says why.
	LiveUpdateNumber *uint64 `json:"live_update_number,omitempty"`
	Previous         string  `json:"previous_release,omitempty"`
	Note             string  `json:"note,omitempty"`
}

// Handover is one live update, as the kernel before it left it.
type Handover struct {
	Time       time.Time `json:"time"`
	Release    string    `json:"release"`
	BootID     string    `json:"boot_id"`
	DurationUS int64     `json:"duration_us"` // how long preserving took
	Units      int       `json:"units"`
	Entries    int       `json:"entries"`
	Bytes      int64     `json:"bytes"`
	Lost       int       `json:"lost"`
}
