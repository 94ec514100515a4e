package web

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/l4fwd/l4fwd/internal/browser"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testbed.Guard(m)) }

var (
	desk  = browser.Look{Width: 1000, Height: 900}
	phone = browser.Look{Width: 360, Height: 740, Phone: true}
)

// reader is a browser and what it reads.
type reader struct {
	*browser.Browser
	t  *testing.T
	ns *testbed.Namespace
}

func newReader(t *testing.T) *reader {
	t.Helper()
	ns, err := testbed.NewNamespace("browser")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, ns.Close()) })
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	b, err := browser.Start(ctx, ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, b.Close()) })
	return &reader{b, t, ns}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// serve has a server answer at an address of the namespace's.
func (r *reader) serve(t *testing.T, s *Server) (url string) {
	t.Helper()
	l, err := r.ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx) // the browser may still read
		noError(t, <-done)
	})
	return "http://" + l.Addr().String() + "/"
}

// tab is a page whose failures are the test's.
type tab struct {
	*browser.Page
	t *testing.T
}

// open opens a page and waits until it is live.
func (r *reader) open(t *testing.T, url string, l browser.Look) *tab {
	t.Helper()
	p, err := r.Open(url, l)
	if err != nil {
		t.Fatal(err)
	}
	tab := &tab{p, t}
	tab.await("document.getElementById('live')?.textContent === 'live'")
	return tab
}

func (p *tab) await(expression string) {
	p.t.Helper()
	if err := p.Await(expression); err != nil {
		p.t.Fatalf("%v; complaints: %q", err, p.Complaints())
	}
}

func (p *tab) press(selector string) {
	p.t.Helper()
	if err := p.Press(selector); err != nil {
		p.t.Fatalf("%s: %v", selector, err)
	}
}

// is compares the value of an expression.
func is[T any](p *tab, expression string, want T) {
	p.t.Helper()
	var got T
	if err := p.Eval(expression, &got); err != nil {
		p.t.Error(err)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		p.t.Errorf("%s (-want +got)\n%s", expression, diff)
	}
}

// quiet asserts that the browser has complained of nothing but of what is expected.
func (p *tab) quiet(expected ...string) {
	p.t.Helper()
next:
	for _, c := range p.Complaints() {
		for _, e := range expected {
			if strings.Contains(c, e) {
				continue next
			}
		}
		p.t.Errorf("the browser complains: %s", c)
	}
}

// picture keeps a picture where PICTURES says, for people to look at.
func (p *tab) picture(name string, whole bool) {
	p.t.Helper()
	if dir := os.Getenv("PICTURES"); dir != "" {
		p.await("!document.querySelector('#workers').innerText.includes('\u2013')") // rates are of two answers
		noError(p.t, p.Picture(filepath.Join(dir, name+".png"), whole))
	}
}

// fits asserts that nothing makes the page scroll sideways, or is cut off so that it does
// not.
func (p *tab) fits() {
	p.t.Helper()
	is(p, "document.documentElement.scrollWidth <= innerWidth", true)
	is(p, `[...document.querySelectorAll('body *:not(svg *)')].filter(e => e.getBoundingClientRect().right > innerWidth + .5).map(e => e.outerHTML.slice(0, 60))`, []string{})
}

// small are the visible things to be touched that are less than 44 pixels high, or wide.
const small = `[...document.querySelectorAll('button, input, summary')].map(e => [e, (e.closest('label') || e).getBoundingClientRect()])
	.filter(([e, r]) => r.height > 0 && (r.height < 43.5 || r.width < 43.5)).map(([e, r]) => e.outerHTML.slice(0, 60) + ' ' + r.width + 'x' + r.height)`

// TestBrowser: the page in a real browser.
func TestBrowser(t *testing.T) {
	r := newReader(t)
	t.Run("text", func(t *testing.T) { testText(t, r) })
	t.Run("looks", func(t *testing.T) { testLooks(t, r) })
	t.Run("buttons", func(t *testing.T) { testButtons(t, r) })
	t.Run("refusals", func(t *testing.T) { testRefusals(t, r) })
	t.Run("another's name", func(t *testing.T) { testRebinding(t, r) })
}

// testText: what the daemon tells is text, whatever is in it, and a page without a token's
// file has no buttons.
func testText(t *testing.T, r *reader) {
	p := r.open(t, r.serve(t, New(&site{}, Options{})), phone)
	is(p, "[...document.querySelectorAll('#services b')].map(e => e.textContent)", []string{hostile, "dns"})
	is(p, "document.querySelectorAll('main img').length", 0)
	is(p, "[...document.querySelectorAll('#services .pill')].map(e => e.className + ' ' + e.textContent)",
		[]string{"pill bad 1 of 2 down", "pill good up", "pill bad down", "pill warn 1 of 1 suspect", "pill warn suspect"})
	is(p, "[...document.querySelectorAll('#services .backend-row .what .faint')].pop().textContent.replace(/^.* suspect for [^:]*/, 'suspect')", "suspect: "+doubtful.Suspect.Reason)
	is(p, "document.querySelectorAll('.health li').length", 1)
	is(p, "[...document.querySelectorAll('#drops code')].map(e => e.textContent)", []string{"no_flow", "no_backend"})
	is(p, "document.querySelectorAll('#workers .worker-row:not(.head)').length + document.querySelectorAll('#nics .nic-row:not(.head)').length", 2)
	is(p, "[...document.querySelectorAll('button')].filter(b => b.getBoundingClientRect().height).length", 0)
	p.fits()
	p.quiet()
}

// testLooks: wide and narrow, light and dark; the find field finds.
func testLooks(t *testing.T, r *reader) {
	s, _ := withButtons(t, newShop(), newShop())
	s.history.fill()
	url := r.serve(t, s)
	back := map[bool]string{}
	for _, l := range []browser.Look{desk, phone} {
		for _, l.Dark = range []bool{false, true} {
			p := r.open(t, url, l)
			p.await("document.querySelectorAll('.backend-row:not(.head)').length === 7")
			p.fits()
			if l.Phone {
				is(p, small, []string{})
			}
			var colour string
			noError(t, p.Eval("getComputedStyle(document.body).backgroundColor", &colour))
			back[l.Dark] = colour
			p.picture(fmt.Sprintf("page-%d-dark-%v", l.Width, l.Dark), true)
			p.picture(fmt.Sprintf("top-%d-dark-%v", l.Width, l.Dark), false) // docs/web.png is one of them
			p.quiet()
		}
	}
	if back[false] == back[true] {
		t.Errorf("light and dark are both %s", back[true])
	}
	p := r.open(t, url, desk)
	p.press("#find")
	noError(t, p.Type("mail"))
	p.await("document.querySelectorAll('#services b').length === 1")
	is(p, "document.querySelector('#services b').textContent", "mail")
	is(p, "[...document.querySelectorAll('#services .backend-row:not(.head) .what')].map(e => e.innerText.replace(/\\s+/g, ' '))[1]", "10.0.1.41:25 drained by an operator 1 d 2 h ago")
	p.quiet()
}

const one = `[aria-label="Change 10.0.1.20:8443 in shop"]`

// row is the state and the note of that backend's row.
const row = `(b => b.querySelector('.pill').textContent + '|' + b.querySelector('.what .faint').textContent)(document.querySelector('` + one + `').closest('.backend-row'))`

// testButtons: a backend is drained, enabled, weighed and disabled by mouse and keyboard;
// the token is asked for once and is nowhere but in the tab.
func testButtons(t *testing.T, r *reader) {
	src := newShop()
	s, _ := withButtons(t, src, src)
	p := r.open(t, r.serve(t, s), desk)
	p.await(`document.querySelector('` + one + `')`)
	p.press(one)
	p.await("document.getElementById('order').open")
	is(p, "document.activeElement.id", "drain")
	is(p, "document.getElementById('enable').hidden", true)
	p.picture("choose-desk", false)
	p.press("#drain")
	is(p, "document.activeElement.id", "sure-no")
	is(p, "document.getElementById('sure-question').textContent", "Drain 10.0.1.20:8443 in shop?")
	is(p, "document.getElementById('sure-means').textContent", "No new flows; the 20,911 flows it has go on.")
	p.picture("sure-desk", false)
	p.press("#sure-no")
	is(p, "document.activeElement.id", "drain")
	noError(t, p.Key("Enter"))
	p.press("#sure-yes")
	p.await("!document.getElementById('order-token').hidden")
	is(p, "document.activeElement.id", "token")
	noError(t, p.Type("not-the-right-token"))
	noError(t, p.Key("Enter"))
	p.await("document.getElementById('order-error').textContent === 'Not done: wrong token.'")
	is(p, "document.activeElement.id + document.activeElement.value", "token")
	p.picture("token-desk", false)
	noError(t, p.Type(token))
	noError(t, p.Key("Enter"))
	p.await("document.getElementById('outcome').textContent === 'Drained 10.0.1.20:8443 in shop.'")
	is(p, "document.getElementById('order').open", false)
	is(p, "document.activeElement.getAttribute('aria-label')", "Change 10.0.1.20:8443 in shop")
	p.await(row + `.startsWith('drained|drained by an operator')`)
	p.picture("drained-desk", false)
	is(p, "document.cookie + location.search + location.hash + Object.values(localStorage)", "")
	is(p, "Object.values(sessionStorage)", []string{token})

	p.press(one)
	is(p, "document.activeElement.id", "enable")
	noError(t, p.Key("Enter"))
	p.await(row + `.startsWith('up|up for')`)
	p.press(one)
	p.press("#weight")
	noError(t, p.Eval("document.getElementById('weight').select()", nil))
	noError(t, p.Type("7"))
	noError(t, p.Key("Enter"))
	p.await(row + `.startsWith('up|weight set by an operator')`)
	p.press(one)
	p.press("#everywhere")
	p.press("#disable")
	is(p, "document.getElementById('sure-question').textContent", "Disable 10.0.1.20:8443 in all services that have it?")
	p.press("#sure-yes")
	p.await(row + `.startsWith('disabled|disabled by an operator')`)
	p.press(one)
	noError(t, p.Key("Escape"))
	p.await("!document.getElementById('order').open")
	p.press("#forget")
	is(p, "Object.values(sessionStorage).length", 0)
	p.quiet("401 (Unauthorized)")
}

// testRefusals: what the daemon will not do is told, and on a phone all of it can be
// touched and read.
func testRefusals(t *testing.T, r *reader) {
	s, _ := withButtons(t, newShop(), &staff{fails: errors.New("the workers are busy <b>now</b>")})
	p := r.open(t, r.serve(t, s), phone)
	noError(t, p.Eval("token.set('"+token+"')", nil))
	p.press(one)
	p.fits()
	is(p, small, []string{})
	p.picture("choose-phone", false)
	p.press("#drain")
	is(p, small, []string{})
	p.picture("sure-phone", false)
	p.press("#sure-yes")
	p.await("document.getElementById('order-error').textContent === 'Not done: the workers are busy <b>now</b>.'")
	p.picture("refused-phone", false)
	p.press("#order-close")
	noError(t, p.Eval("token.set('')", nil))
	p.press(one)
	p.press("#drain")
	p.press("#sure-yes")
	is(p, small, []string{})
	p.picture("token-phone", false)
	p.fits()
	p.quiet("503 (Service Unavailable)")
}

// testRebinding: another's name that leads here shows nothing but what to do about it.
func testRebinding(t *testing.T, r *reader) {
	s, _ := withButtons(t, newShop(), newShop())
	url := r.serve(t, s)
	p, err := r.Open(strings.Replace(url, "127.0.0.1", "[::ffff:127.0.0.1]", 1), desk) // an address, as good as any
	if err != nil {
		t.Fatal(err)
	}
	noError(t, p.Await("document.getElementById('live')?.textContent === 'live'"))
	if p, err = r.Open(strings.Replace(url, "127.0.0.1", "evil.test", 1), desk); err != nil {
		t.Fatal(err)
	}
	noError(t, p.Await(`document.body?.innerText.startsWith('This is not served by the name "evil.test".')`))
}
