// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// What a client can ask for: the Op of a Request.
//
//	fdbridge-inject                   fdbridged
//	deliver                  -->
//	                         <--      Grant that says to wait, as often as needed
//	                         <--      Grant, with the session's fd if there still is a session
//	file                     -->                                             as often as needed
//	                         <--      File that says to wait, as often as needed
//	                         <--      File, with the file's fd
//	storing                  -->                                             before the first fd goes to the unit's store
//	delivered, what arrived  -->
//	                         <--      Settled: it is held no longer
//	or
//	returned, and why        -->
//	                         <--      Settled: it is held on
//
// One that has lost the connection after it had stored everything, or taken all of it back,
// says so on a new one. One that hangs up without a word has delivered nothing unless it has
// said storing.
//
//	fdbridgectl                       fdbridged
//	list                     -->
//	                         <--      Answer with a Unit, once each; with End
//	status                   -->
//	                         <--      Answer with a Status; with a Problem, Carried or Lost, once each; with End
//	show, of which unit      -->
//	                         <--      Answer with an Entry, once each; with a Problem; with End
//	inspect, which session   -->
//	                         <--      Answer with a Document and its fd, once each; with End
//	drop                     -->
//	                         <--      Answer with End, or with an Error
//	deliver-as               -->
//	                         <--      Answer with an Assigned; with End; or with an Error
//	watch                    -->
//	                         <--      an empty Answer: nothing that changes from now on is missed
//	                         <--      Answer with a Change or a Problem, as it happens
//
// A watch ends when the client hangs up, or fdbridged does: when it is stopped, and on
// a client that does not read what it is sent.
//
// For LUOSession= fdbridge-inject asks, on connections of their own:
//
//	luo-session              -->
//	                         <--      Session, with its fd unless the unit's store has it
//	done-session             -->                            when one that came is in that store
//	                         <--      Session
const (
	OpDeliver    = "deliver"
	OpFile       = "file"
	OpStoring    = "storing"
	OpDelivered  = "delivered"
	OpReturned   = "returned"
	OpList       = "list"
	OpStatus     = "status"
	OpShow       = "show"
	OpInspect    = "inspect"
	OpDrop       = "drop"
	OpDeliverAs  = "deliver-as"
	OpWatch      = "watch"
	OpLUOSession = "luo-session"
)

// What a service can ask for at SessionsPath, whatever user it runs as. It has to
// be in a unit that has opted in, and gets sessions of that unit only.
//
//	service                           fdbridged
//	open-session             -->
//	                         <--      Session, with its fd
//	claim-session            -->
//	                         <--      Session, with its fd
//	done-session             -->
//	                         <--      Session
//
// Before a live update the service opens a session, under a name of its choice, and
// preserves its files in it under tokens of its choice, in the order that they need:
// LIVEUPDATE_SESSION_PRESERVE_FD of linux/liveupdate.h. It can do so up to the
// moment when it has stopped. fdbridged has the session, too, so that the service
// need not keep it, and asking again gives the same session; it is carried, with
// what is in it, by the next live update.
//
// After the live update the service claims the session by its name, gets the files
// back by their tokens (LIVEUPDATE_SESSION_RETRIEVE_FD), finishes the session
// (LIVEUPDATE_SESSION_FINISH), and says that it is done, in this order. Up to then
// it can claim it again, as when it has crashed, or fdbridged has: files that were
// retrieved can be retrieved again. Only then can it open one of that name again,
// and preserve the files anew.
//
// A session that came, and that its unit is not done with, cannot be carried
// further: nobody else knows the tokens. It is lost with the next live update,
// unless the unit has Required=yes; then that is called off.
//
// A session of LUOSession= is in the unit's store instead, and comes in $LISTEN_FDS:
// when the service has finished one that came, it takes it out of its store, with
// FDSTOREREMOVE=1, and has a new one at its next start.
//
// done-session also ends a session that was opened: when the service has closed it,
// too, the kernel lets go of its files. Nothing else takes a file out of one.
const (
	OpOpenSession  = "open-session"
	OpClaimSession = "claim-session"
	OpDoneSession  = "done-session"
)

// MaxSessions is how many sessions a unit can have open or not be done with.
const MaxSessions = 16

// Request is what a client sends.
type Request struct {
	Op string `json:"op"`
	// Unit goes with OpShow, OpDrop and OpDeliverAs, and As with the last: the unit
	// that something is held for, and the one that is to have it, which may be
	// the same. All else is about the peer's own unit.
	Unit string `json:"unit,omitempty"`
	As   string `json:"as,omitempty"`
	// Invocation goes with OpDeliver, OpDelivered and OpReturned: $INVOCATION_ID of the
	// unit, which is another one at each start.
	Invocation string `json:"invocation,omitempty"`
	// Session and Token say which file, with OpFile, or which parcel, by the
	// place of its manifest as the Grant has it, with OpDelivered and OpReturned. OpInspect has
	// a Session alone.
	Session string `json:"session,omitempty"`
	Token   uint64 `json:"token,omitempty"`
	// Stored and Lost go with OpDelivered: how many fds were put into the
	// unit's store, and how many can never be. Failed names the first
	// MaxFailed of those.
	Stored int    `json:"stored,omitempty"`
	Lost   int    `json:"lost,omitempty"`
	Failed []Lost `json:"failed,omitempty"`
	// Reason goes with OpReturned: why nothing of what was granted is in the
	// unit's store.
	Reason string `json:"reason,omitempty"`
	// Name goes with the operations on a service's sessions: what the unit calls
	// it, 1 to 255 printable ASCII characters without a colon and a space.
	Name string `json:"name,omitempty"`
}

// MaxFailed is how many fds a Request names, so that it fits into a packet.
const MaxFailed = 16

// Grant answers OpDeliver.
type Grant struct {
	// Error says why nothing is granted although something may be held.
	Error string `json:"error,omitempty"`
	// Unit is the unit that the manifest is of: the one that asks, or one that it
	// was before, or whose fds an administrator has given to it.
	Unit string `json:"unit,omitempty"`
	// Session and Token are the place of the granted parcel's manifest; Session
	// is empty when nothing is held for the unit. The session's fd comes with
	// this packet, unless the session is not there any more: then all files are
	// to be asked for.
	Session string `json:"session,omitempty"`
	Token   uint64 `json:"token,omitempty"`
	// Shared are the tokens of those files in the session that are to be asked
	// for nevertheless, because other units have them, too.
	Shared []uint64 `json:"shared,omitempty"`
	// Clear says that an earlier delivery of this parcel was broken off, and
	// what it has left in the unit's store is to be removed first.
	Clear bool `json:"clear,omitempty"`
	// Sessions is how many sessions the unit's store has, if it is known to have any.
	Sessions int `json:"sessions,omitempty"`
	// Wait says that it takes longer, as when it is the turn of others yet, and that
	// another Grant follows within WaitInterval. Error says so, too, to clients that do not know it.
	Wait bool `json:"wait,omitempty"`
}

// WaitInterval is how often fdbridged tells a client that has to wait.
const WaitInterval = 20 * time.Second

// File answers OpFile.
type File struct {
	// Error says why there is no file with this packet; Lost, that there never
	// will be.
	Error string `json:"error,omitempty"`
	Lost  bool   `json:"lost,omitempty"`
	// Wait says that it takes longer, as when the file is copied, and that another File
	// follows within WaitInterval.
	Wait bool `json:"wait,omitempty"`
}

// Settled answers OpDelivered and OpReturned.
type Settled struct {
	// Error says what went wrong; the parcel is then held on.
	Error string `json:"error,omitempty"`
}

// Session answers OpOpenSession, OpClaimSession, OpDoneSession and OpLUOSession.
type Session struct {
	// Error says why there is no session, or why it is not done.
	Error string `json:"error,omitempty"`
	// Unit is the unit that the process belongs to, and Session is what the
	// kernel calls the session: empty when none has come that could be claimed.
	Unit    string `json:"unit,omitempty"`
	Session string `json:"session,omitempty"`
	// Came goes with OpLUOSession: the session has come through a live update.
	Came bool `json:"came,omitempty"`
	// Replaces goes with Came: the unit's store has another session of that name,
	// which is to be taken out before.
	Replaces bool `json:"replaces,omitempty"`
	// Wait goes with OpLUOSession and OpDoneSession: it says what it says in a Grant.
	Wait bool `json:"wait,omitempty"`
}

// Answer is one packet of the answer to what fdbridgectl or fdbridge-bus asks; one
// of its fields is set, but where that is said.
type Answer struct {
	Status   *Status   `json:"status,omitempty"`
	Unit     *Unit     `json:"unit,omitempty"`
	Carried  *Carried  `json:"carried,omitempty"`
	Lost     *Lost     `json:"lost,omitempty"`
	Entry    *Entry    `json:"entry,omitempty"`
	Document *Document `json:"document,omitempty"`
	Assigned *Assigned `json:"assigned,omitempty"`
	Change   *Change   `json:"change,omitempty"`
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
	// Sessions is the number of sessions of the unit's own that came and that it has not
	// taken over.
	Sessions int `json:"sessions,omitempty"`
	// As is the unit that is to have them because an administrator has decided
	// so: see OpDeliverAs.
	As string `json:"as,omitempty"`
	// Lost is the number of fds that the last live update did not carry.
	Lost    int    `json:"lost"`
	Session string `json:"session,omitempty"` // the one that is held
	// Outcome is what has become of what the unit had before the last live update:
	// OutcomeLost, or when this fdbridged has seen to it, ChangeDelivered or
	// ChangeDropped; else empty.
	Outcome string `json:"outcome,omitempty"`
}

// OutcomeLost is the Outcome of a Unit of which nothing was carried.
const OutcomeLost = "lost"

// What has become of fds, in a Change.
const (
	ChangeHeld      = "held"      // they wait for the unit from now on
	ChangeDelivered = "delivered" // they are in the unit's store
	ChangeDropped   = "dropped"   // they are lost: somebody, or HoldTimeoutSec=, would have it so
)

// Change says that something has become of fds that the last live update brought
// for a unit.
type Change struct {
	Unit string `json:"unit"`
	What string `json:"what"`
	FDs  int    `json:"fds"` // how many
}

// Lost is an fd that did not get where it belongs.
type Lost struct {
	Unit   string `json:"unit"`
	Name   string `json:"name"`
	Type   string `json:"type,omitempty"`
	Reason string `json:"reason"`
}

// Carried is what the last live update has carried for one unit.
type Carried struct {
	Unit    string `json:"unit"`
	Entries int    `json:"entries"`
	Bytes   int64  `json:"bytes"`
	Held    bool   `json:"held"` // some of it still waits for the unit
	// DeliverUS is how long the delivery took, until PID 1 had taken all of it in; 0 when
	// it was not since this fdbridged was started.
	DeliverUS int64 `json:"deliver_us,omitempty"`
}

// Where an Entry is.
const (
	PlaceStored = "stored" // in its unit's fd store
	PlaceHeld   = "held"   // with fdbridged, until the unit is started
	PlaceLost   = "lost"   // nowhere
)

// Entry is one fd of a unit. What is in a store comes first, in its order, and
// then each parcel that is held, in the order of the store that it was.
type Entry struct {
	Name  string `json:"name"`
	Place string `json:"place"`
	Type  string `json:"type"` // in words: "memfd", "pipe"
	// Size and Position are in bytes; nil of what has none, and where they
	// cannot be told.
	Size     *int64   `json:"size,omitempty"`
	Position *int64   `json:"position,omitempty"`
	Seals    []string `json:"seals,omitempty"`
	Flags    uint32   `json:"flags"` // of the open file, as fcntl(F_GETFL) has them
	// Session and Token say where it is held, Kind how it has travelled. Several
	// entries can be of one file.
	Kind    string `json:"kind,omitempty"`
	Session string `json:"session,omitempty"`
	Token   uint64 `json:"token,omitempty"`
	// Reason says why it is lost, or why it is not known what it is.
	Reason string `json:"reason,omitempty"`
}

// Document comes with the fd of a manifest or of the index.
type Document struct {
	Unit  string `json:"unit,omitempty"` // whose manifest it is; empty of the index
	Token uint64 `json:"token"`
}

// Assigned says what was decided with OpDeliverAs, and will happen when the unit
// As is started next.
type Assigned struct {
	Unit string `json:"unit"`
	As   string `json:"as"`
	// Held is the number of fds that are held for Unit, HeldBytes their size.
	Held      int   `json:"held"`
	HeldBytes int64 `json:"held_bytes"`
	// Stored is the number of fds in the store of As at present, which has to be
	// empty then.
	Stored int `json:"stored"`
}

// Status is the state of fdbridge and of the last live update.
type Status struct {
	Version string `json:"version"`
	Kernel  Kernel `json:"kernel"`
	// Handover is what the last live update brought; nil when this kernel was
	// started without one, or by one without fdbridge.
	Handover *Handover `json:"handover,omitempty"`
	// Unknown says why it is not known what the last live update brought.
	Unknown string `json:"unknown,omitempty"`
	// Held counts the units that fds wait for, Sessions the sessions of units' own that came
	// and that these have not taken over.
	Held     int `json:"held"`
	Sessions int `json:"sessions,omitempty"`
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
	// ReplaceUS is the time from then until fdbridged has taken over, as far as
	// the clocks of the two kernels agree, and RestoreUS how long that took;
	// both 0 when another fdbridged did it.
	ReplaceUS int64 `json:"replace_us,omitempty"`
	RestoreUS int64 `json:"restore_us,omitempty"`
	Units     int   `json:"units"`
	Entries   int   `json:"entries"`
	Bytes     int64 `json:"bytes"`
	Lost      int   `json:"lost"`
}
