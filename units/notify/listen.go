// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// firstFD is SD_LISTEN_FDS_START.
const firstFD = 3

// ErrListen says that $LISTEN_FDS or $LISTEN_FDNAMES make no sense.
var ErrListen = errors.New("the fds passed by the service manager make no sense")

// Passed is one fd that the service manager passed to this process.
type Passed struct {
	Name string
	FD   *fd.FD
}

// Listen takes over the fds that the service manager passed to this process,
// in their order, and makes them close-on-exec; the caller owns them. It takes
// the variables out of the environment, so that it returns fds only once and
// children are not misled. No fds is no error.
//
// systemd adds an empty line to $LISTEN_FDNAMES for a name that is empty, so
// names and fds always agree in number (src/core/exec-invoke.c).
func Listen() ([]Passed, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails for a malformed name only
	}
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	list := strings.Split(names, ":")
	if err != nil || n < 1 || n != len(list) {
		return nil, fmt.Errorf("LISTEN_FDS=%s with %d names: %w", count, len(list), ErrListen)
	}
	passed := make([]Passed, n)
	for i := range passed {
		unix.CloseOnExec(firstFD + i)
		passed[i] = Passed{Name: list[i], FD: fd.New(firstFD + i)}
	}
	return passed, nil
}
