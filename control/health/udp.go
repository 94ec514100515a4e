package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// maxDatagram is how much of a datagram is looked at, by thousands of checks that may
// wait with a buffer each. A DNS answer's header and question, all that is read of it,
// are less than 300 bytes (RFC 1035 sections 2.3.4 and 4.1).
const maxDatagram = 2048

// probeUDP sends a datagram. The socket is connected, so that an ICMP error about
// it is an error of reading.
func (t *Target) probeUDP(ctx context.Context) (string, error) {
	c, err := t.dial(ctx, "udp", 0)
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // nothing is lost with it
	check := &t.Check.UDP
	if _, err := c.Write(check.Send); err != nil {
		return "", err
	}
	answer := make([]byte, maxDatagram)
	for others := 0; ; others++ {
		n, err := c.Read(answer)
		switch {
		case err == nil && check.Expect == nil:
			return "answered", nil
		case err == nil && bytes.Contains(answer[:n], check.Expect):
			return "answered as expected", nil
		case err == nil:
			continue // it may be late, of an earlier check
		case errors.Is(err, os.ErrDeadlineExceeded) && check.Expect == nil:
			return "nobody complained", nil
		case errors.Is(err, os.ErrDeadlineExceeded) && others > 0:
			return "", errors.New("what was answered is not what is expected")
		}
		return "", err
	}
}

// probeDNS asks one question.
func (t *Target) probeDNS(ctx context.Context) (string, error) {
	check, id := &t.Check.DNS, uint16(rand.Uint32())
	question, err := check.question(id)
	if err != nil {
		return "", fmt.Errorf("DNS question: %w", err)
	}
	network := "udp"
	if check.TCP {
		network = "tcp"
		question = append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...) // RFC 1035 section 4.2.2
	}
	c, err := t.dial(ctx, network, 0)
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // nothing is lost with it
	if _, err := c.Write(question); err != nil {
		return "", err
	}
	for {
		answer, err := check.read(c)
		if err != nil {
			return "", err
		}
		// Over UDP an answer to an earlier question, or a forged one, is passed over.
		if code, ours := check.code(answer, id); ours {
			found := rcodeName(code)
			if code != dnsmessage.RCode(check.RCode) {
				return "", errors.New("DNS response code " + found)
			}
			return "DNS response code " + found, nil
		}
		if check.TCP {
			return "", errors.New("the answer is to another DNS question")
		}
	}
}

// rcodeName is a response code as RFC 2136 writes it.
func rcodeName(r dnsmessage.RCode) string {
	switch r {
	case dnsmessage.RCodeSuccess:
		return "NOERROR"
	case dnsmessage.RCodeFormatError:
		return "FORMERR"
	case dnsmessage.RCodeServerFailure:
		return "SERVFAIL"
	case dnsmessage.RCodeNameError:
		return "NXDOMAIN"
	case dnsmessage.RCodeNotImplemented:
		return "NOTIMP"
	case dnsmessage.RCodeRefused:
		return "REFUSED"
	}
	return fmt.Sprint(uint16(r))
}

// question is the message that asks.
func (d *DNSCheck) question(id uint16) ([]byte, error) {
	name, err := dnsmessage.NewName(d.Name)
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.Type(d.Type), Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

// read reads one message.
func (d *DNSCheck) read(c net.Conn) ([]byte, error) {
	if !d.TCP {
		b := make([]byte, maxDatagram)
		n, err := c.Read(b)
		return b[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, unexpectedEnd(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, unexpectedEnd(err)
	}
	return b, nil
}

// code is the response code of an answer, if it is one to the question with that id.
// Servers that refuse may leave the question out (RFC 2308 has no say in that).
func (d *DNSCheck) code(answer []byte, id uint16) (dnsmessage.RCode, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(answer)
	if err != nil || !h.Response || h.ID != id {
		return 0, false
	}
	q, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) {
		return h.RCode, h.RCode != dnsmessage.RCodeSuccess
	}
	ours := err == nil && strings.EqualFold(q.Name.String(), d.Name) && uint16(q.Type) == d.Type
	return h.RCode, ours
}
