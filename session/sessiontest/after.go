// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/session"
)

// The sessions that Prepare leaves for the checks of After, each of which has
// its own: a session can be retrieved but once. Those but sampleSession and
// emptySession have one memfd under token 1.
const (
	sampleSession    = "conform.samples"
	emptySession     = "conform.empty"
	onceSession      = "conform.once"
	sameNameSession  = "conform.samename"
	againSession     = "conform.again"
	tokenSession     = "conform.tokens"
	countedSession   = "conform.counted"
	finishSession    = "conform.finish"
	closeSession     = "conform.close"
	duplicateSession = "conform.duplicate"
	sizesSession     = "conform.sizes"
	closedSession    = "conform.closed" // closed before the kexec
)

// extremeToken is in tokenSession beside token 1.
const extremeToken = math.MaxUint64

// Prepare makes the sessions that the checks of After look for and returns
// them. The caller keeps them open until the kexec, and reachable with
// runtime.KeepAlive: one that is garbage is closed.
func Prepare(t T, k session.Kernel) []*session.Session {
	t.Helper()
	d := device(t, k)
	var held []*session.Session
	for _, name := range []string{
		onceSession, sameNameSession, againSession, tokenSession, countedSession, finishSession,
		closeSession, duplicateSession, sizesSession, closedSession, longName,
	} {
		s := must(d.Create(name))(t)
		ok(t, "preserve", s.Preserve(memfd(t, 0, name), 1))
		switch name {
		case tokenSession:
			ok(t, "preserve", s.Preserve(memfd(t, 0, "extreme"), extremeToken))
		case closedSession:
			ok(t, "close", s.Close())
			continue
		}
		held = append(held, s)
	}
	full := must(d.Create(sampleSession))(t)
	preserveSamples(t, full)
	return append(held, full, must(d.Create(emptySession))(t))
}

// After returns the checks of incoming sessions, to be run once in the kernel
// after the one in which Prepare was called.
func After() []Check {
	return []Check{
		{Name: "files come back with contents, position and seals, and else as new", Run: samplesReturn},
		{Name: "a session is retrieved once, by its exact name", Run: retrievedOnce},
		{Name: "a session that was closed before the kexec is gone", Run: closedIsGone},
		{Name: "a name of 63 bytes comes back", Run: longNameReturns},
		{Name: "a session without files comes back", Run: emptyReturns},
		{Name: "an outgoing session may be named like an incoming one", Run: sameName},
		{Name: "retrieving a file again gives the same open file", Run: retrievedAgain},
		{Name: "files are found by their tokens alone", Run: byToken},
		{Name: "a retrieved file counts as preserved until the session is finished", Run: countsAsPreserved},
		{Name: "a finished session is empty and can be finished again", Run: finished},
		{Name: "closing a retrieved session finishes it", Run: closeFinishes},
		{Name: "a retrieved session lives on in a duplicate", Run: duplicateLives},
		{Name: "requests on an incoming session have a size", Run: incomingSizes},
	}
}

func samplesReturn(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), sampleSession)
	all := samples()
	for i := range all { // the last ones first: any order is good
		token := len(all) - 1 - i
		all[token].check(t, retrieveFD(t, s, uint64(token)))
	}
	ok(t, "finish", s.Finish())
}

func retrievedOnce(t T, k session.Kernel) {
	d := device(t, k)
	for _, name := range []string{onceSession[:len(onceSession)-1], onceSession + "x"} {
		_, err := d.Retrieve(name)
		fails(t, "retrieve "+name, err, session.ErrNoSession, unix.ENOENT)
	}
	s := retrieve(t, d, onceSession)
	closeOnExec(t, "a retrieved session", s.FD())
	if name, err := s.Name(); name != onceSession || err != nil {
		t.Errorf("name of a retrieved session: %q, %v", name, err)
	}
	if out, err := s.Outgoing(); out || err != nil {
		t.Errorf("a retrieved session: outgoing %v, %v", out, err)
	}
	_, err := d.Retrieve(onceSession)
	fails(t, "retrieve again", err, session.ErrRetrieved, unix.EINVAL)
	ok(t, "close", s.Close())
	_, err = d.Retrieve(onceSession)
	fails(t, "retrieve when it is closed", err, session.ErrNoSession, unix.ENOENT)
}

func closedIsGone(t T, k session.Kernel) {
	_, err := device(t, k).Retrieve(closedSession)
	fails(t, "retrieve", err, session.ErrNoSession, unix.ENOENT)
}

func longNameReturns(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), longName)
	if name, err := s.Name(); name != longName || err != nil {
		t.Errorf("name is %q, %v; want %q", name, err, longName)
	}
	retrieveFD(t, s, 1)
}

func emptyReturns(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), emptySession)
	_, err := s.RetrieveFD(0)
	fails(t, "retrieve a file", err, session.ErrNoToken, unix.ENOENT)
	ok(t, "finish", s.Finish())
}

func sameName(t T, k session.Kernel) {
	d := device(t, k)
	incoming, outgoing := retrieve(t, d, sameNameSession), create(t, d, sameNameSession)
	ok(t, "preserve in the outgoing one", outgoing.Preserve(memfd(t, 0, "x"), 1))
	ok(t, "finish the incoming one", incoming.Finish())
	ok(t, "close the incoming one", incoming.Close())
	fails(t, "preserve in the outgoing one", outgoing.Preserve(memfd(t, 0, "x"), 1), session.ErrTokenUsed)
}

func retrievedAgain(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), againSession)
	one, two := retrieveFD(t, s, 1), retrieveFD(t, s, 1)
	closeOnExec(t, "a retrieved file", one)
	closeOnExec(t, "a file retrieved again", two)
	seek(t, one, 3)
	if got := stateOf(t, two); got.pos != 3 || got.contents != againSession {
		t.Errorf("position and contents in the second descriptor: %d, %q", got.pos, got.contents)
	}
}

func byToken(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), tokenSession)
	if got := stateOf(t, retrieveFD(t, s, extremeToken)); got.contents != "extreme" {
		t.Errorf("the file of the highest token has %q in it", got.contents)
	}
	for _, token := range []uint64{0, 2, extremeToken - 1} {
		_, err := s.RetrieveFD(token)
		fails(t, "retrieve an unknown token", err, session.ErrNoToken, unix.ENOENT)
	}
	if got := stateOf(t, retrieveFD(t, s, 1)); got.contents != tokenSession {
		t.Errorf("the file of token 1 has %q in it", got.contents)
	}
}

func countsAsPreserved(t T, k session.Kernel) {
	d := device(t, k)
	incoming, outgoing := retrieve(t, d, countedSession), create(t, d, "conform.next")
	f := retrieveFD(t, incoming, 1)
	fails(t, "preserve", outgoing.Preserve(f, 1), session.ErrPreserved, unix.EBUSY)
	ok(t, "finish", incoming.Finish())
	ok(t, "preserve when it is finished", outgoing.Preserve(f, 1))
}

func finished(t T, k session.Kernel) {
	d := device(t, k)
	s := retrieve(t, d, finishSession)
	f := retrieveFD(t, s, 1)
	preserve := func(when string) {
		fails(t, "preserve "+when, s.Preserve(memfd(t, 0, "x"), 2), session.ErrDirection, unix.EINVAL)
	}
	preserve("in an incoming session")
	ok(t, "finish", s.Finish())
	preserve("in a finished session")
	_, err := s.RetrieveFD(1)
	fails(t, "retrieve a file", err, session.ErrNoToken, unix.ENOENT)
	ok(t, "finish again", s.Finish())
	_, err = d.Retrieve(finishSession)
	fails(t, "retrieve it again", err, session.ErrRetrieved, unix.EINVAL)
	if got := stateOf(t, f); got.contents != finishSession {
		t.Errorf("the retrieved file has %q in it", got.contents)
	}
}

func closeFinishes(t T, k session.Kernel) {
	d := device(t, k)
	s := retrieve(t, d, closeSession)
	f := retrieveFD(t, s, 1)
	ok(t, "close", s.Close())
	ok(t, "preserve the file anew", create(t, d, "conform.next").Preserve(f, 1))
	_, err := d.Retrieve(closeSession)
	fails(t, "retrieve it again", err, session.ErrNoSession, unix.ENOENT)
}

func duplicateLives(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), duplicateSession)
	dup := session.Adopt(k, own(t, must(s.FD().Dup())(t)))
	ok(t, "close", s.Close())
	if got := stateOf(t, retrieveFD(t, dup, 1)); got.contents != duplicateSession {
		t.Errorf("the file has %q in it", got.contents)
	}
}

func incomingSizes(t T, k session.Kernel) {
	s := retrieve(t, device(t, k), sizesSession)
	served := func(_ []byte, err error) bool { return err == nil || err == unix.ENOENT }
	sizes(t, k, s.FD(), session.ReqRetrieveFD, sizeToken, func([]byte) {}, served)
	arg := argument(sizeFinish)
	arg[atFD] = 1
	fails(t, "FINISH with a reserved word", k.Ioctl(s.FD(), session.ReqFinish, arg), unix.EINVAL)
	retrieveFD(t, s, 1)
	sizes(t, k, s.FD(), session.ReqFinish, sizeFinish, func([]byte) {}, served)
}
