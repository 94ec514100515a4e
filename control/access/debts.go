package access

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Wrong tokens of an address: so many at once, then one in each pause. An IPv6 network of
// 48 bits, which many have for the asking, may have the wrong tokens of siteShare addresses.
const (
	guesses   = 10
	pause     = 6 * time.Second
	siteShare = 16
)

// Who has had the right token is remembered by address, that many of them.
const friends = 1024

// debts is how long addresses have to wait for their wrong tokens. Of those that have not
// sent a right one there may be any number, so they are not remembered one by one: each has
// a cell in each of some rows, and the least of these counts (a count-min sketch with
// conservative update: Cormode and Muthukrishnan, 2005, Estan and Varghese, 2002). So none
// waits for less than it should, and one that has done nothing waits only where all its
// cells are those of others who have to: beside 10,000 of them that are 4 in 10,000, beside
// 100,000 more than a third. The hash is keyed, so that nobody can choose whose cells he shares.
type debts struct {
	seed  maphash.Seed
	base  time.Time
	rows  *[rows][cells]time.Duration // after base, when all has been waited for; nil until there is a debt
	known map[netip.Addr]*friend
}

// 2 MiB, of a guard that has met a wrong token.
const (
	rows  = 4
	cells = 1 << 16
)

// friend is an address from which the right token has come. Its own debts are its only
// ones, whatever others do; and none can drive it away but by the right token.
type friend struct{ until, used time.Time }

// wait is how long nobody listens to an address.
func (d *debts) wait(from netip.Addr, now time.Time) (longest time.Duration) {
	if f := d.known[from]; f != nil {
		return max(0, f.until.Add(-(guesses-1)*pause).Sub(now))
	}
	for _, a := range accounts(from) {
		longest = max(longest, d.until(a).Add(a.pause-guesses*pause).Sub(now))
	}
	return longest
}

// add notes a wrong token.
func (d *debts) add(from netip.Addr, now time.Time) {
	if f := d.known[from]; f != nil {
		if f.until.Before(now) {
			f.until = now
		}
		f.until = f.until.Add(pause)
		return
	}
	if d.rows == nil {
		d.seed, d.base, d.rows = maphash.MakeSeed(), now, new([rows][cells]time.Duration)
	}
	for _, a := range accounts(from) {
		until := max(d.until(a).Sub(d.base), now.Sub(d.base)) + a.pause
		for r, c := range d.cellsOf(a) {
			d.rows[r][c] = max(d.rows[r][c], until)
		}
	}
}

// welcome notes the right token. It forgives nothing, or to share an address with who has
// it would be worth something.
func (d *debts) welcome(from netip.Addr, now time.Time) {
	if f := d.known[from]; f != nil {
		f.used = now
		return
	}
	if d.known == nil {
		d.known = make(map[netip.Addr]*friend)
	}
	if len(d.known) == friends {
		var oldest netip.Addr
		for a, f := range d.known {
			if o := d.known[oldest]; o == nil || f.used.Before(o.used) {
				oldest = a
			}
		}
		delete(d.known, oldest)
	}
	d.known[from] = &friend{until: d.until(accounts(from)[0]), used: now}
}

// until is when an account has waited for all its wrong tokens, and perhaps for those of
// others.
func (d *debts) until(a account) time.Time {
	if d.rows == nil {
		return time.Time{}
	}
	least := time.Duration(1<<63 - 1)
	for r, c := range d.cellsOf(a) {
		least = min(least, d.rows[r][c])
	}
	return d.base.Add(least)
}

// cellsOf are the cells of an account, by row.
func (d *debts) cellsOf(a account) (out [rows]uint16) {
	h := maphash.Comparable(d.seed, a.of)
	for r := range out {
		out[r] = uint16(h >> (16 * r))
	}
	return out
}

// account is who has debts, and the pause of each wrong token.
type account struct {
	of    netip.Prefix
	pause time.Duration
}

// accounts are those of an address of placeOf: its own, and in IPv6 its site's.
func accounts(from netip.Addr) []account {
	const site = 48
	out := []account{{netip.PrefixFrom(from, from.BitLen()), pause}}
	if from.Is6() {
		out = append(out, account{netip.PrefixFrom(from, site).Masked(), pause / siteShare})
	}
	return out
}
