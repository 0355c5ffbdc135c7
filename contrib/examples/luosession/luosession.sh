#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A service that keeps a word through live updates in the session that LUOSession=
# gives it. It is in $LISTEN_FDS, as everything is that systemd keeps for a service.
set -eu

# fd NAME prints the number of the descriptor that systemd passes under a name.
fd() {
	number=3
	IFS=:
	for name in ${LISTEN_FDNAMES-}; do
		[ "$name" != "$1" ] || { echo "$number"; return; }
		number=$((number + 1))
	done
	echo "no fd is called $1" >&2
	return 1
}

session=$(fd state)
status=0
word=$(luo get "$session" 1) || status=$?
case $status in
0) # It came: when it is finished, and out of the store, the next start gets a new one.
	luo finish "$session"
	systemd-notify FDSTOREREMOVE=1 FDNAME=state
	echo "came: $word"
	;;
3)
	echo "a new session"
	echo "${1:-hello}" | luo put "$session" 1 || echo "it has its word already"
	;;
*) exit "$status" ;;
esac
exec sleep infinity
