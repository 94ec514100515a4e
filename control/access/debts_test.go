package access

import (
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// stranger is one of many addresses.
func stranger(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// TestStrangers: however many addresses send wrong tokens, each has its share and no more,
// and hardly anybody else has to wait; who has sent the right one before, never has.
func TestStrangers(t *testing.T) {
	g := newGuard(t, write(t, filepath.Join(t.TempDir(), "token"), token, 0o600))
	g.read(t)
	if got := g.status(here, "Bearer "+token); got != http.StatusOK {
		t.Fatal(got)
	}
	const flood, others = 20000, 2000
	for i := range flood {
		for heard := 0; g.debts.wait(stranger(i), g.at) == 0; heard++ {
			if heard == guesses {
				t.Fatalf("%v guesses and guesses", stranger(i))
			}
			g.debts.add(stranger(i), g.at)
		}
	}
	kept := 0
	for i := range others {
		if g.debts.wait(stranger(1<<20+i), g.at) > 0 {
			kept++
		}
	}
	if kept > others/50 { // of 20,000 addresses it is 1 in 200
		t.Errorf("%d of %d others have to wait", kept, others)
	}
	for i := range 10 * flood {
		for g.debts.wait(stranger(i), g.at) == 0 {
			g.debts.add(stranger(i), g.at)
		}
	}
	if got := g.status(here, "Bearer "+token); got != http.StatusOK {
		t.Errorf("who is known: %d", got)
	}
	for range guesses {
		g.status(here, "Bearer wrong")
	}
	if got := g.status(here, "Bearer "+token); got != http.StatusTooManyRequests {
		t.Errorf("who is known, and guesses: %d", got)
	}
	g.at = g.at.Add(guesses * pause)
	for _, from := range []string{here, there, "10.0.0.1:9"} {
		if got := g.status(from, "Bearer "+token); got != http.StatusOK {
			t.Errorf("%s, in the end: %d", from, got)
		}
	}
}

// TestSite: who has an IPv6 network of 48 bits has not 65,536 times the guesses, and others
// do not notice.
func TestSite(t *testing.T) {
	var d debts
	now, heard := time.Unix(1e9, 0), 0
	for i := range 1 << 16 {
		from := placeOf(fmt.Sprintf("[2001:db8:1:%x::1]:9", i))
		if d.wait(from, now) == 0 {
			heard++
			d.add(from, now)
		}
	}
	if heard != guesses*siteShare {
		t.Errorf("%d guesses", heard)
	}
	if wait := d.wait(placeOf("[2001:db8:2::1]:9"), now); wait > 0 {
		t.Errorf("the next site waits for %v", wait)
	}
}

// TestFriends: those who had the right token last are known.
func TestFriends(t *testing.T) {
	var d debts
	now := time.Unix(1e9, 0)
	for i := range 3 * friends {
		now = now.Add(time.Second)
		d.welcome(stranger(i), now)
		d.welcome(stranger(0), now)
	}
	if d.known[stranger(0)] == nil || d.known[stranger(3*friends-1)] == nil || d.known[stranger(1)] != nil || len(d.known) != friends {
		t.Errorf("%d are known", len(d.known))
	}
}

// TestNothingIsForgotten: nobody waits for less than his own wrong tokens ask for, whatever
// others do, and whoever is known for exactly that. That of one alone is exact, too.
func TestNothingIsForgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d debts
		now := time.Unix(1e9, 0)
		owed := map[netip.Addr]time.Time{}
		one := rapid.IntRange(0, 4).Draw(t, "addresses") == 0
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "pause")) * time.Second)
			a := stranger(0)
			if !one {
				a = stranger(rapid.IntRange(0, 4).Draw(t, "address"))
			}
			want := max(0, owed[a].Add(-(guesses-1)*pause).Sub(now))
			got := d.wait(a, now)
			if got < want || (one || d.known[a] != nil) && got != want {
				t.Fatalf("%v waits %v, want %v", a, got, want)
			}
			switch {
			case got > 0:
			case rapid.IntRange(0, 9).Draw(t, "right") == 0:
				d.welcome(a, now)
				owed[a] = d.known[a].until
			default:
				d.add(a, now)
				if owed[a].Before(now) {
					owed[a] = now
				}
				owed[a] = owed[a].Add(pause)
			}
		}
	})
}
