package health

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/net/dns/dnsmessage"
)

// Whatever a server answers, nothing panics, and the reason is a line of bounded length.
func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 503 \x1b[31m\r\n\r\n"))
	check := HTTPCheck{Method: "GET", Path: "/", Statuses: statuses([2]int{200, 299}), Body: regexp.MustCompile("ok")}
	f.Fuzz(func(t *testing.T, answer []byte) {
		good, err := check.judge(bytes.NewReader(answer))
		if err == nil && !bytes.Contains(answer, []byte("HTTP/")) {
			t.Fatalf("good: %q", good)
		}
		if err != nil {
			good = explain(err, time.Second)
		}
		if len(good) > maxReason+3 || strings.ContainsFunc(good, unicode.IsControl) {
			t.Fatalf("reason %q", good)
		}
	})
}

// The same for names' servers; what is taken for the answer is one.
func FuzzDNSAnswer(f *testing.F) {
	check := DNSCheck{Name: "www.example.org.", Type: 1}
	question, err := check.question(7)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(dnsServer(0, nil)(question))
	f.Add(dnsServer(dnsmessage.RCodeRefused, func(m *dnsmessage.Message) { m.Questions = nil })(question))
	f.Add(question)
	f.Fuzz(func(t *testing.T, answer []byte) {
		code, ours := check.code(answer, 7)
		if ours && (len(answer) < 12 || answer[0] != 0 || answer[1] != 7 || answer[2]&0x80 == 0 || dnsmessage.RCode(answer[3]&15) != code) {
			t.Fatalf("%v of %x", code, answer)
		}
	})
}
