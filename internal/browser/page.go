package browser

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// params are those of a command.
type params map[string]any

// Look is how a page is looked at.
type Look struct {
	Width, Height int  // CSS pixels
	Phone         bool // touched, and as wide as the page says
	Dark          bool // colours
}

// Page is a tab.
type Page struct {
	b          *Browser
	session    string
	complaints []string // under b.mu
}

// Open opens a page in a tab of its own.
func (b *Browser) Open(url string, l Look) (*Page, error) {
	var target struct{ TargetID string }
	if err := b.call("", "Target.createTarget", params{"url": "about:blank"}, &target); err != nil {
		return nil, err
	}
	var attached struct{ SessionID string }
	if err := b.call("", "Target.attachToTarget", params{"targetId": target.TargetID, "flatten": true}, &attached); err != nil {
		return nil, err
	}
	p := &Page{b: b, session: attached.SessionID}
	b.mu.Lock()
	b.pages[p.session] = p
	b.mu.Unlock()
	scheme := "light"
	if l.Dark {
		scheme = "dark"
	}
	for _, c := range []struct {
		method string
		params params
	}{
		{"Runtime.enable", nil}, {"Log.enable", nil}, {"Page.enable", nil},
		{"Emulation.setDeviceMetricsOverride", params{"width": l.Width, "height": l.Height, "deviceScaleFactor": 1, "mobile": l.Phone}},
		{"Emulation.setTouchEmulationEnabled", params{"enabled": l.Phone}},
		{"Emulation.setEmulatedMedia", params{"features": []params{{"name": "prefers-color-scheme", "value": scheme}}}},
		{"Page.navigate", params{"url": url}},
	} {
		if err := b.call(p.session, c.method, c.params, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// note keeps what the browser complains of. Under the browser's mu.
func (p *Page) note(method string, raw json.RawMessage) {
	var e struct {
		Entry struct{ Source, Level, Text, URL string }
		Type  string
		Args  []struct{ Value, Description any }

		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	if json.Unmarshal(raw, &e) != nil {
		return
	}
	switch {
	case method == "Log.entryAdded" && (e.Entry.Level == "error" || e.Entry.Level == "warning"):
		p.complaints = append(p.complaints, strings.TrimSpace(fmt.Sprint(e.Entry.Source, ": ", e.Entry.Text, " ", e.Entry.URL)))
	case method == "Runtime.exceptionThrown":
		p.complaints = append(p.complaints, "exception: "+e.ExceptionDetails.Text+" "+e.ExceptionDetails.Exception.Description)
	case method == "Runtime.consoleAPICalled" && (e.Type == "error" || e.Type == "warning" || e.Type == "assert"):
		p.complaints = append(p.complaints, fmt.Sprint("console: ", e.Args))
	}
}

// Complaints are exceptions, errors and warnings since the last call: of the page's
// script, of its policy, and of what could not be loaded.
func (p *Page) Complaints() []string {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	out := p.complaints
	p.complaints = nil
	return out
}

// Eval runs an expression in the page, waits for it if it is a promise, and decodes its
// value into out, unless that is nil.
func (p *Page) Eval(expression string, out any) error {
	var r struct {
		Result struct{ Value json.RawMessage }

		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := p.b.call(p.session, "Runtime.evaluate", params{"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true}, &r)
	if err != nil {
		return err
	}
	if e := r.ExceptionDetails; e != nil {
		return fmt.Errorf("browser: %s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if out == nil {
		return nil
	}
	if r.Result.Value == nil {
		return fmt.Errorf("browser: %s: no value", expression)
	}
	return json.Unmarshal(r.Result.Value, out)
}

// patience is how long Await waits: the machine may have much else to do.
const patience = 30 * time.Second

// Await waits until an expression is true.
func (p *Page) Await(expression string) error {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var ok bool
		err := p.Eval("!!("+expression+")", &ok)
		if err == nil && ok {
			return nil
		}
		if time.Now().After(end) {
			var text string
			_ = p.Eval("document.body.innerText", &text)
			return fmt.Errorf("browser: not in %v: %s (%w); the page:\n%s", patience, expression, err, text)
		}
	}
}

// quoted is a text as script writes it.
func quoted(s string) string {
	b, _ := json.Marshal(s) // of a string, which cannot fail
	return string(b)
}

// Press presses the middle of the first element that a CSS selector finds, as a mouse
// does: what covers it gets the press.
func (p *Page) Press(selector string) error {
	var at struct{ X, Y float64 }
	err := p.Eval(`(async () => {
		const e = document.querySelector(`+quoted(selector)+`);
		if (!e) throw new Error('nobody is called so');
		e.scrollIntoView({block: 'center'});
		await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
		const r = e.getBoundingClientRect();
		if (!r.width || !r.height) throw new Error('it is not to be seen');
		return {x: r.x + r.width / 2, y: r.y + r.height / 2};
	})()`, &at)
	for _, kind := range []string{"mouseMoved", "mousePressed", "mouseReleased"} {
		if err == nil {
			err = p.b.call(p.session, "Input.dispatchMouseEvent", params{"type": kind, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1}, nil)
		}
	}
	return err
}

// Type types a text where the keyboard is.
func (p *Page) Type(s string) error {
	return p.b.call(p.session, "Input.insertText", params{"text": s}, nil)
}

// Key presses a key: Enter, Escape or Tab.
func (p *Page) Key(name string) error {
	code := map[string]int{"Enter": 13, "Escape": 27, "Tab": 9}[name]
	down := params{"type": "keyDown", "key": name, "code": name, "windowsVirtualKeyCode": code}
	if name == "Enter" {
		down["text"] = "\r"
	}
	if err := p.b.call(p.session, "Input.dispatchKeyEvent", down, nil); err != nil {
		return err
	}
	return p.b.call(p.session, "Input.dispatchKeyEvent", params{"type": "keyUp", "key": name, "code": name, "windowsVirtualKeyCode": code}, nil)
}

// Picture writes what is to be seen, of the whole page if whole, as PNG.
func (p *Page) Picture(file string, whole bool) error {
	var shot struct{ Data string }
	if err := p.b.call(p.session, "Page.captureScreenshot", params{"format": "png", "captureBeyondViewport": whole}, &shot); err != nil {
		return err
	}
	b, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		return fmt.Errorf("browser: picture: %w", err)
	}
	return os.WriteFile(file, b, 0o644)
}
