// SPDX-License-Identifier: Apache-2.0

package journal

// Kind tells messages by their meaning: MESSAGE_ID= in the journal, which stays what
// it is when the words change. fdbridge(7) lists them.
type Kind string

// The kinds of messages.
const (
	// Restored: a live update has brought so much.
	Restored Kind = "7b2f8ae90ffb41b4b21f6d5106c0e248"
	// Lost: an fd is, or will be.
	Lost Kind = "86fda19c240843d1ad6167751b0dd165"
	// Delivered: a unit has got its fds.
	Delivered Kind = "1188f8f918504418a95f88f8766baa9c"
	// Held: a unit did not get what is held for it, which is held on.
	Held Kind = "420cdb8d4af146a9ae12941226d0a6f7"
	// Dropped: what was held for a unit was let go of.
	Dropped Kind = "df81c213e2814b13ba037f2f03e3e1f3"
	// Assigned: an administrator has decided who gets what is held.
	Assigned Kind = "493b1ac7e4094b52baed9fa3331b021f"
	// Trouble: something else did not work, or may need attention.
	Trouble Kind = "3c072120b35d4e0fa5f2e8ff5aa7bbe2"
	// Note: anything else.
	Note Kind = "3d854a02e03a4b068e6b276fef51738c"
)

// About is what a message is about; what is empty is not said.
type About struct {
	Kind Kind // Trouble when it is empty, or Note of what was done
	// Unit is UNIT=, and OBJECT_SYSTEMD_UNIT=, by which journalctl -u finds what
	// others say of a unit (systemd.journal-fields(7)).
	Unit    string
	Session string // FDBRIDGE_SESSION=, the name of a live-update session
	FD      string // FDBRIDGE_FD=, the name of an fd in the unit's store
}
