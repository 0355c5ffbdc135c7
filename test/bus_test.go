// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

const (
	asNobody   = "setpriv --reuid=65534 --regid=65534 --clear-groups "
	busUnit    = "/org/fdbridge/Bridge1/unit/start_2eservice"
	busManager = "org.fdbridge.Bridge1 /org/fdbridge/Bridge1 org.fdbridge.Bridge1.Manager"
)

// busCall calls a method of the manager as a user does, and returns the reply's
// values.
func (b *bed) busCall(as, method string) (values []any) {
	b.Helper()
	var reply struct{ Data []any }
	out := b.sh("%sbusctl --json=short call %s %s", as, busManager, method)
	if out == "" { // a reply without values
		return nil
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		b.Fatalf("the reply of %s: %v: %s", method, err, out)
	}
	return reply.Data
}

// busUnits are the units that onTheBus does something to.
var busUnits = []string{"start.service", "drop.service", "allow.service"}

// busStates returns the states of busUnits on the bus, and how many fds are held.
func (b *bed) busStates() map[string]string {
	b.Helper()
	states := map[string]string{}
	for _, u := range b.busCall(asNobody, "ListUnits")[0].([]any) {
		unit := u.([]any)
		if name := unit[0].(string); slices.Contains(busUnits, name) {
			states[name] = fmt.Sprintf("%v, %v held", unit[1], unit[3])
		}
	}
	return states
}

// denied runs a command that must fail, and demands what it says.
func (b *bed) denied(command, says string) {
	b.Helper()
	if out := b.sh("if %s 2>&1; then echo it was allowed; fi", command); !strings.Contains(out, says) {
		b.Errorf("%s says %q, and not %q", command, out, says)
	}
}

// await waits until a file in the guest says something.
func (b *bed) await(file, says string) {
	b.Helper()
	b.file("/run/await", says)
	b.sh("%s || { cat %s; exit 1; }", polling("grep -qF -f /run/await "+file), file)
}

// monitor runs a command in the guest that prints what happens, and returns when it
// says on standard error that it has begun, or to systemd if it is of that type. What
// it prints is in the file.
func (b *bed) monitor(unit, kind, command string) (file string) {
	b.Helper()
	file = "/run/" + unit
	b.sh("systemd-run --quiet --unit=%s --service-type=%s -p StandardOutput=file:%s -p StandardError=file:%s.err %s", unit, kind, file, file, command)
	if kind != "notify" {
		b.await(file+".err", "Monitoring")
	}
	return file
}

// onTheBus is what is told of units and done to them, on the message bus and with polkit as
// they are. Two fds are held for each of busUnits, and for three other units.
func onTheBus(b *bed) {
	b.Helper()
	if state := b.sh("systemctl show -P ActiveState fdbridge-bus.service"); state != "inactive" {
		b.Errorf("nobody has asked yet, and the service is %s", state)
	}
	busReading(b)
	busRefusal(b)
	busSignals(b)
	want := map[string]string{
		"start.service": "delivered, 0 held", "drop.service": "lost, 0 held", "allow.service": "lost, 0 held",
	}
	if diff := cmp.Diff(want, b.busStates()); diff != "" {
		b.Errorf("units at the end (-want +got):\n%s", diff)
	}
	if out := b.journal("-p warning -u fdbridge-bus.service -u dbus.service -u polkit.service"); out != "" {
		b.Errorf("the journal has warnings: %s", out)
	}
}

// Everybody may read, and the bus starts the service for it.
func busReading(b *bed) {
	b.Helper()
	want := map[string]string{"start.service": "held, 2 held", "drop.service": "held, 2 held", "allow.service": "held, 2 held"}
	if diff := cmp.Diff(want, b.busStates()); diff != "" {
		b.Errorf("units after the update (-want +got):\n%s", diff)
	}
	lists := map[string][]wire.Unit{asNobody: nil, "": nil}
	for as := range lists {
		var list []wire.Unit
		if err := json.Unmarshal([]byte(b.sh("%sfdbridgectl list --json", as)), &list); err != nil {
			b.Fatal(err)
		}
		lists[as] = list
	}
	// What has become of fds is in the states on the bus, and not in that list.
	if diff := cmp.Diff(lists[""], lists[asNobody], cmpopts.IgnoreFields(wire.Unit{}, "Outcome")); diff != "" {
		b.Errorf("fdbridgectl lists for an ordinary user (-root +nobody):\n%s", diff)
	}
	for _, command := range []string{"status", "status start", "show start"} {
		as := map[string]string{asNobody: "", "": ""}
		for user := range as {
			as[user] = b.sh("%sfdbridgectl %s --full", user, command)
		}
		if diff := cmp.Diff(as[""], as[asNobody]); diff != "" {
			b.Errorf("fdbridgectl %s says for an ordinary user (-root +nobody):\n%s", command, diff)
		}
	}
	for command, says := range map[string]string{
		"tree org.fdbridge.Bridge1":                                                           busUnit,
		"introspect org.fdbridge.Bridge1 " + busUnit:                                          ".HeldBytes                          property  t         12288 ",
		"get-property org.fdbridge.Bridge1 " + busUnit + " org.fdbridge.Bridge1.Unit Entries": `a(ssst) 2 "held" "b" "memfd" 8192 "held" "a" "memfd" 4096`,
		"get-property " + busManager + " State LiveUpdateNumber Held":                         "s \"holding\"\nt 1\nu 6",
	} {
		if out := b.sh("%sbusctl --full %s", asNobody, command); !strings.Contains(out, says) {
			b.Errorf("busctl %s does not say %q:\n%s", command, says, out)
		}
	}
	const gdbus = asNobody + "gdbus %s --system --dest org.fdbridge.Bridge1 --object-path %s"
	for command, says := range map[string]string{
		fmt.Sprintf(gdbus, "introspect", "/org/fdbridge/Bridge1"):                                                            "signal",
		fmt.Sprintf(gdbus, "introspect", busUnit):                                                                            "readonly t HeldBytes = 12288;",
		fmt.Sprintf(gdbus, "call", "/org/fdbridge/Bridge1") + " --method org.fdbridge.Bridge1.Manager.GetUnit start.service": busUnit,
	} {
		if out := b.sh("%s", command); !strings.Contains(out, says) {
			b.Errorf("%s does not say %q:\n%s", command, says, out)
		}
	}
	// The service is confined, and comes to the same result as a check that is not.
	var direct check.Result
	if err := json.Unmarshal([]byte(b.sh("fdbridgectl check --json || true")), &direct); err != nil {
		b.Fatal(err)
	}
	var found check.Result
	if err := json.Unmarshal([]byte(b.sh(asNobody+"fdbridgectl check --json || true")), &found); err != nil {
		b.Fatal(err)
	}
	direct.Units, direct.Kernel, direct.Memory = nil, check.Kernel{}, check.Memory{} // of which the bus does not tell
	if diff := cmp.Diff(direct, found, cmpopts.EquateEmpty()); diff != "" {
		b.Errorf("fdbridgectl check finds for an ordinary user (-root +nobody):\n%s", diff)
	}
}

// Root may change something, and others if polkit says so.
func busRefusal(b *bed) {
	b.Helper()
	drop := asNobody + "busctl --allow-interactive-authorization=%s call " + busManager + " Drop s drop.service"
	b.denied(fmt.Sprintf(drop, "no"), "nteractive authentication")
	b.denied(fmt.Sprintf(drop, "yes"), "nteractive authentication")
	b.denied("busctl call "+busManager+" Drop s none.service", "has not opted in")
	b.denied(asNobody+"busctl call "+busManager+" Deliver ss drop.service drop.service", "nteractive authentication")
	b.denied("busctl call "+busManager+" Deliver ss drop.service start.service", "cannot have more")
	b.busCall("", "Deliver ss drop.service drop.service")
	b.denied(asNobody+"fdbridgectl drop drop.service", "nteractive authentication")
	b.denied(asNobody+"fdbridgectl deliver drop --as drop", "nteractive authentication")
	b.denied(asNobody+"fdbridgectl inspect fdbridge", "only root")
	busAgent(b)
	b.file("/etc/polkit-1/rules.d/50-test.rules", `polkit.addRule(function(action, subject) {
	if (action.id == "org.fdbridge.Bridge1.drop" && subject.user == "nobody" && action.lookup("unit") == "allow.service")
		return polkit.Result.YES;
});`)
	b.sh("systemctl restart polkit.service")
	b.denied(fmt.Sprintf(drop, "no"), "nteractive authentication")
	if got := b.busStates()["drop.service"]; got != "held, 2 held" {
		b.Errorf("after it was refused drop.service is %s", got)
	}
	b.sh(asNobody + "fdbridgectl drop allow.service")
}

// On a terminal the command asks an ordinary user for an administrator's password.
func busAgent(b *bed) {
	b.Helper()
	b.sh("echo root:secret | chpasswd; mkfifo /run/keys")
	b.sh(`script -qefc '%sfdbridgectl deliver drop --as drop' /run/terminal < /run/keys > /dev/null 2>&1 &
exec 3> /run/keys
%s
echo secret >&3
wait $!`, asNobody, polling("grep -q Password: /run/terminal"))
	if out := b.sh("cat /run/terminal"); !strings.Contains(out, "2 fds of drop.service will be delivered to drop.service") {
		b.Errorf("with an administrator's password: %s", out)
	}
}

// What happens is told as it happens, on the bus and by the command.
func busSignals(b *bed) {
	b.Helper()
	text := b.monitor("monitor", "exec", "fdbridgectl monitor")
	lines := b.monitor("monitor-json", "exec", "fdbridgectl monitor --json")
	signals := b.monitor("monitor-bus", "notify",
		"busctl --json=short monitor --match=type=signal,interface=org.freedesktop.DBus.Properties,path_namespace=/org/fdbridge/Bridge1")
	b.sh("systemctl start start.service")
	b.await(text, "start.service: 2 fds delivered")
	b.await(signals, `"State":{"type":"s","data":"delivered"}`)
	b.busCall("", "Drop s drop.service")
	b.await(text, "drop.service: 2 fds dropped")
	b.await(lines, `"change":{"unit":"drop.service","what":"dropped","fds":2}}`)
	b.await(signals, `"State":{"type":"s","data":"lost"}`)
	b.sh("systemctl stop monitor.service monitor-json.service monitor-bus.service")
	if out := b.sh("systemctl list-units --failed --plain --no-legend 'monitor*'"); out != "" {
		b.Errorf("a monitor that was ended has failed: %s", out)
	}
}
