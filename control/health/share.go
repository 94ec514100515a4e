package health

// Member is one backend of a service, as Effective looks at it.
type Member struct {
	// Weight that the configuration, or an operator, gives it; 0 takes no new flows.
	Weight uint32
	// Live: not found down.
	Live bool
	// Backup is used only when no other backend is live.
	Backup bool
	// Percent of the weight it has come to, 1 to 100.
	Percent int
}

// Share is what a backend gets of the new flows.
type Share struct {
	Weight uint32
	// Down: none, whatever the weight and wherever a client was before.
	Down bool
}

// Effective turns what is known of a service's backends into shares, in their
// order. Backends of weight 0 are no hope for anybody and count for nothing.
//
// As long as a backend that is no backup is live, new flows go to those that are;
// else to the live backups. Where that is nobody, or, with none of the backups in
// use, less than panicBelow percent of the others are live, what checks say is not
// believed and all that are no backups are used: a fault that takes most of the
// servers away at once is more often one of the checks, and the few that are left
// would not bear the load. With panicBelow 0 that never happens.
//
// A backup that is not in use has weight 0: connections that it has and that can be
// told by an ID, as QUIC's can, still reach it.
//
// While a backend has not come to its full weight, all weights of the service are
// tenfold, so that those of 1 can have a tenth.
func Effective(members []Member, panicBelow int) []Share {
	total, live, reserves, slow := 0, 0, 0, false
	for _, m := range members {
		if m.Weight == 0 {
			continue
		}
		switch {
		case m.Backup && m.Live:
			reserves++
		case !m.Backup:
			total++
			if m.Live {
				live++
			}
		}
		slow = slow || m.Live && m.Percent < 100
	}
	backups := live == 0 && reserves > 0
	all := !backups && panicBelow > 0 && live*100 < panicBelow*total
	out := make([]Share, len(members))
	for i, m := range members {
		out[i] = Share{Weight: m.Weight, Down: !m.Live && (!all || m.Backup)}
		switch {
		case m.Backup && !backups:
			out[i].Weight = 0
			continue
		case !slow:
			continue
		}
		out[i].Weight *= rampSteps
		if m.Live && m.Percent < 100 {
			out[i].Weight = m.Weight * uint32(max(m.Percent, 1)) * rampSteps / 100
		}
	}
	return out
}
