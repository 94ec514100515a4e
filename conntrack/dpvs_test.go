package conntrack

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The state table of DPVS 1.10.2 (ip_vs_proto_tcp.c), as data: by view and
// event, the state after each of dpvsStates. Its names are from the server's
// end: FW is the server's FIN seen, CW the client's, save one-way, where FW is
// the client's.
var dpvsStates = strings.Fields("NO ES SS SR FW TW CL CW LA")

var dpvsTable = [3]map[string]string{
	Forward: {
		"syn": "SR ES ES SR SR SR SR SR SR", "fin": "CL CW SS TW TW TW CL CW LA",
		"ack": "CL ES SS ES FW TW CL CW CL", "rst": "CL CL CL SR CL CL CL CL LA",
	},
	Reply: {
		"syn": "SS ES SS SR SS SS SS SS SS", "fin": "TW FW SS TW FW TW CL TW LA",
		"ack": "ES ES SS ES FW TW CL CW LA", "rst": "CL CL SS CL CL TW CL CL CL",
	},
	oneWay: {
		"syn": "SR ES ES SR SR SR SR SR SR", "fin": "CL FW SS TW FW TW CL CW LA",
		"ack": "CL ES SS ES FW TW CL CW CL", "rst": "CL CL CL SR CL CL CL CL LA",
	},
}

// dpvsEvents are our events that DPVS, which looks at flags alone, takes for one.
var dpvsEvents = [3]map[string][]event{
	Forward: {"syn": {evSYN, evNewSYN}, "fin": {evFIN}, "ack": {evACK, evDone}, "rst": {evRST}},
	Reply:   {"syn": {evSYNACK}, "fin": {evFIN}, "ack": {evACK, evDone}, "rst": {evRST}},
	oneWay:  {"syn": {evSYN, evNewSYN}, "fin": {evFIN}, "ack": {evACK}, "rst": {evRST}},
}

// dpvsState is our name for a state of DPVS in a view.
func dpvsState(view int, name string) State {
	if view == oneWay && name == "FW" {
		return FinWait
	}
	return map[string]State{"NO": None, "ES": Established, "SS": SynSent, "SR": SynRecv, "FW": CloseWait,
		"TW": TimeWait, "CL": Closed, "CW": FinWait, "LA": LastAck}[name]
}

// dpvsReasons say why a cell of the table is different: cells are written
// "view event state", each the reason's or more of them with commas between.
// docs/tcp.md holds the same list.
var dpvsReasons = []struct{ what, why, cells string }{
	{"the first SYN of a flow leads to `syn_sent`, not to SYN_RECV, and only a SYN-ACK that fits it goes on to `syn_recv`",
		"a SYN proves nothing about its sender; until the server has answered, the flow may be evicted and waits 10 s, not 30 s",
		"client syn none, client syn syn_sent, server syn syn_sent, one-way syn none, one-way syn syn_sent"},
	{"a SYN in a half-closed connection moves nothing",
		"it can be forged; the server's challenge ACK and the client's exact RST sort it out (RFC 5961 section 4)",
		"client syn fin_wait, client syn close_wait, client syn last_ack, one-way syn fin_wait"},
	{"a SYN in `time_wait` and `close` opens a new flow",
		"fresh sequence numbers, port and, where the old one is gone, backend, instead of the old entry's (RFC 6191, RFC 9293 section 3.6.1)",
		"client syn time_wait, client syn close, one-way syn close"},
	{"a SYN-ACK of the server moves nothing but `syn_sent`",
		"a live server sends none; one that forgot the connection is believed once the client has acknowledged it",
		"server syn none, server syn close_wait, server syn time_wait, server syn close, server syn fin_wait, server syn last_ack"},
	{"a segment without a flow's SYN before it moves nothing",
		"a flow begins with a SYN only",
		"client fin none, client ack none, server fin none, server ack none, one-way fin none, one-way ack none, one-way rst none"},
	{"a FIN never skips a state",
		"both sides have to send FIN and both FINs have to be acknowledged before the flow counts as over: a half-closed connection may go on for long (RFC 9293 section 3.9.1)",
		"client fin syn_recv, client fin close_wait, server fin syn_recv, server fin fin_wait"},
	{"the server's ACK does not establish a connection",
		"the client's does; until then its address may be invented",
		"server ack syn_recv"},
	{"`last_ack` ends in `time_wait`, when both FINs are acknowledged in whichever order",
		"only then nothing is left to be retransmitted",
		"client ack last_ack, server ack last_ack"},
	{"an exact RST closes whatever is open",
		"its number is what the receiver expects next, so the receiver believes it too",
		"client rst syn_recv, client rst last_ack, server rst syn_sent"},
	{"a RST in `time_wait` moves nothing",
		"RFC 1337; the connection is over anyway",
		"client rst time_wait"},
	{"one-way, the client's ACK after its SYN establishes the connection, and its FIN then closes its half",
		"the SYN-ACK went another way and will never be seen",
		"one-way ack syn_sent, one-way fin syn_sent"},
	{"one-way there are no `syn_recv`, `close_wait`, `last_ack` and `time_wait`",
		"only the server's packets could lead there; events leave them alone",
		"one-way syn close_wait, one-way syn last_ack, one-way syn time_wait, one-way fin syn_recv, one-way fin close_wait, " +
			"one-way ack syn_recv, one-way ack last_ack, one-way ack close_wait, one-way rst close_wait, one-way rst time_wait"},
}

var viewNames = [3]string{"client", "server", "one-way"}

// TestDPVSTable compares cell by cell: what is different has a reason, and what
// has a reason is different.
func TestDPVSTable(t *testing.T) {
	reason := map[string]bool{}
	for _, r := range dpvsReasons {
		for _, cell := range strings.Split(r.cells, ", ") {
			if reason[cell] {
				t.Errorf("%s has two reasons", cell)
			}
			reason[cell] = true
		}
	}
	cells := 0
	for view, rows := range dpvsTable {
		for ev, row := range rows {
			for i, next := range strings.Fields(row) {
				cells++
				from, want := dpvsState(view, dpvsStates[i]), dpvsState(view, next)
				name := fmt.Sprintf("%s %s %v", viewNames[view], ev, from)
				if view == oneWay && dpvsStates[i] == "CW" { // FW is its FinWait
					from, name = CloseWait, "one-way "+ev+" close_wait"
				}
				same, got := true, ""
				for _, e := range dpvsEvents[view][ev] {
					if e == evDone && from != LastAck {
						continue // both FINs have to have been sent
					}
					ours := transitions[view][e][from]
					same = same && ours == want
					got += fmt.Sprintf(" %v", ours)
				}
				if same == reason[name] {
					t.Errorf("%s: DPVS %v, here%s, reason given: %v", name, want, got, reason[name])
				}
				delete(reason, name)
			}
		}
	}
	for name := range reason {
		t.Errorf("a reason for %s, which is no cell", name)
	}
	if cells != 3*4*9 {
		t.Errorf("%d cells compared", cells)
	}
}

// TestDPVSDocumented: docs/tcp.md has the reasons, and no other.
func TestDPVSDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/tcp.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("| what | why | where |\n|---|---|---|\n")
	for _, r := range dpvsReasons {
		fmt.Fprintf(&want, "| %s | %s | %s |\n", r.what, r.why, r.cells)
	}
	if !strings.Contains(string(b), want.String()) {
		t.Errorf("docs/tcp.md must hold\n%s", want.String())
	}
}

// TestStatesDocumented: docs/tcp.md has a row with each state's timeout.
func TestStatesDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/tcp.md")
	if err != nil {
		t.Fatal(err)
	}
	to := DefaultTimeouts()
	for s := SynSent; s < NumStates; s++ {
		if row := fmt.Sprintf("| `%v` | %s |", s, seconds(to[s])); !strings.Contains(string(b), row) {
			t.Errorf("docs/tcp.md has no row %s", row)
		}
	}
}

// seconds writes a timeout as people do.
func seconds(ticks uint32) string {
	s := ticks / TicksPerSecond
	switch {
	case s >= 3600:
		return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
	case s >= 60:
		return fmt.Sprintf("%d min", s/60)
	}
	return fmt.Sprintf("%d s", s)
}
