// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
)

// What is in fdbridged's fd store, by its name there. Names of sessions may have
// characters that are not allowed in it, so a hash stands for them.
//
//	index              the session of the index
//	sessions-N         a bundle of units' sessions: see bundler
//	s-HASH             a session that is in none
//	f-HASH-TOKEN       a kept file: what the session has, or had, under the token
//	b-HASH-INVOCATION  a delivery of the parcel was begun when its unit was started,
//	                   in this invocation of the unit
//	d-HASH             the parcel is done, though its manifest can be had: its session
//	                   lives on, or it is in the store of a preserve service, too
//	a-HASH             an administrator's word for whom what is held for a unit is
//	o-HASH             a session that a service has opened
//	l-HASH             its label, which says whose it is: see kho.Service
//	retrieving         not all sessions that were handed over are in this store yet
//
// HASH is of the session's name, of the place of a parcel's manifest, or, with a-,
// of the unit's name. PID 1 takes no open file twice, so each of the marks, b-, d-, a-
// and retrieving, is a memfd of its own. It is empty, but for a-, which has the names
// of both units in it.
const (
	indexName      = "index"
	bundlePrefix   = "sessions-"
	sessionPrefix  = "s-"
	keptPrefix     = "f-"
	begunPrefix    = "b-"
	donePrefix     = "d-"
	assignedPrefix = "a-"
	openPrefix     = "o-"
	labelPrefix    = "l-"

	retrievingName = "retrieving"
)

// address is the place of a file in a session.
type address struct {
	session string
	token   uint64
}

func (a address) String() string { return fmt.Sprintf("token %d of session %s", a.token, a.session) }

func storeHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// sessionName is the name in the store of a session that is an entry of its own.
func sessionName(session string) string {
	if session == kho.IndexSession {
		return indexName
	}
	return sessionPrefix + storeHash(session)
}

// keptName is the name of a kept file in the store.
func keptName(a address) string {
	return keptOf(a.session) + strconv.FormatUint(a.token, 10)
}

// keptOf is how the names of all kept files of a session begin.
func keptOf(session string) string { return keptPrefix + storeHash(session) + "-" }

// markHash stands for the parcel whose manifest is at a, in the names of marks.
func markHash(a address) string { return storeHash(fmt.Sprintf("%s\x00%d", a.session, a.token)) }

func begunName(hash, invocation string) string { return begunPrefix + hash + "-" + invocation }

// begunOf takes the name of a begun delivery's mark apart.
func begunOf(name string) (hash, invocation string) {
	hash, invocation, _ = strings.Cut(strings.TrimPrefix(name, begunPrefix), "-")
	return hash, invocation
}

func doneName(a address) string { return donePrefix + markHash(a) }

// assignedName is the name of the mark that says for whom a unit's fds are.
func assignedName(unit string) string { return assignedPrefix + storeHash(unit) }

// mark stores a mark, which is empty or says something besides its name.
func mark(keeper Keeper, name, says string) error {
	raw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := fd.New(raw)
	defer func() { _ = f.Close() }() // of a memfd, which has nothing to flush
	if _, err := unix.Pwrite(raw, []byte(says), 0); err != nil {
		return os.NewSyscallError("pwrite", err)
	}
	return keeper.Store(name, f)
}
