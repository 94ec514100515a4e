package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/docs"
)

// dropCount is a reason with its count and what there is to say of it.
type dropCount struct {
	Reason string  `json:"reason"`
	Count  uint64  `json:"count"`
	Rate   float64 `json:"rate"` // a second
	Means  string  `json:"means"`
	Cause  string  `json:"cause,omitempty"`
	Do     string  `json:"do"`
}

func dropsCommand() *cobra.Command {
	var interval time.Duration
	var all bool
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show which packets are dropped, and what to do about it",
		Long: `Show for which reasons the running daemon drops packets: how many since its start,
how many a second now, what the reason means, what it is likely to come from and what
to do about it. docs/drops.md has the same words.`,
		Args: cobra.NoArgs,
	}
	a := askFlags(cmd)
	f := cmd.Flags()
	f.DurationVar(&interval, "interval", time.Second, "`TIME` over which the rate is taken")
	f.BoolVar(&all, "all", false, "also the reasons for which none was dropped")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if interval <= 0 {
			return &exitError{exitUsage, errors.New("--interval: expected more than 0")}
		}
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			before, err := c.Stats(ctx)
			if err != nil {
				return err
			}
			began := time.Now()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(interval):
			}
			after, err := c.Stats(ctx)
			if err != nil {
				return err
			}
			drops := countDrops(before.Verdicts, after.Verdicts, time.Since(began), all)
			return a.print(cmd.OutOrStdout(), drops, func(w io.Writer) { dropsTable(w, drops) })
		})
	}
	return cmd
}

// countDrops makes the list, the highest rate first, then the highest count, then the
// page's order.
func countDrops(before, after map[string]uint64, passed time.Duration, all bool) []dropCount {
	dropped := make(map[string]bool)
	for v := range dataplane.NumVerdicts {
		dropped[v.String()] = v.IsDrop()
	}
	out := []dropCount{}
	for _, d := range docs.Drops() {
		n := after[d.Reason]
		if !dropped[d.Reason] || n == 0 && !all {
			continue
		}
		rate := float64(n-min(before[d.Reason], n)) / passed.Seconds()
		out = append(out, dropCount{d.Reason, n, rate, d.Means, d.Cause, d.Do})
	}
	slices.SortStableFunc(out, func(a, b dropCount) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(b.Count, a.Count))
	})
	return out
}

func dropsTable(w io.Writer, drops []dropCount) {
	if len(drops) == 0 {
		row(w, "nothing has been dropped")
	}
	for i, d := range drops {
		if i > 0 {
			row(w)
		}
		_, _ = io.WriteString(w, d.Reason+": ")
		_, _ = io.WriteString(w, number(d.Count, "packet")+", "+perSecond(d.Rate)+"\n")
		for _, s := range []struct{ name, text string }{{"means", d.Means}, {"cause", d.Cause}, {"do", d.Do}} {
			if s.text == "" {
				continue
			}
			for j, line := range wrap(s.text, 76) {
				if j == 0 {
					row(w, "  "+s.name, line)
				} else {
					row(w, "", line)
				}
			}
		}
	}
}

// wrap breaks text into lines of at most so many bytes, but for words that are longer.
func wrap(text string, most int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > most {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// number is "1 packet" or "2 packets".
func number(n uint64, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func perSecond(rate float64) string {
	if rate == 0 {
		return "none now"
	}
	return fmt.Sprintf("%.1f a second now", rate)
}
