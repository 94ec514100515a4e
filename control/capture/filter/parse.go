package filter

import (
	"strconv"
)

// parser reads an expression from left to right.
type parser struct {
	toks  []token
	pos   int
	end   int // length of the expression
	depth int
	shift uint32 // bytes of VLAN tags that vlan has spoken of so far
	// last is what the primitive before said of its identifier: in "port 80 or 443" it
	// holds for both.
	last qualifiers
}

// qualifiers say what an identifier is.
type qualifiers struct {
	proto, dir, kind string
}

func (p *parser) peek() string {
	if p.pos < len(p.toks) {
		return p.toks[p.pos].text
	}
	return ""
}

// at is where the next token is.
func (p *parser) at() int {
	if p.pos < len(p.toks) {
		return p.toks[p.pos].at
	}
	return p.end
}

// take goes over the next token if it is one of those, and says which.
func (p *parser) take(texts ...string) (string, bool) {
	for _, t := range texts {
		if p.pos < len(p.toks) && p.toks[p.pos].text == t {
			p.pos++
			return t, true
		}
	}
	return "", false
}

func (p *parser) expect(text string) error {
	if _, ok := p.take(text); !ok {
		return p.unexpected("want " + strconv.Quote(text))
	}
	return nil
}

// unexpected is an error about the next token.
func (p *parser) unexpected(want string) error {
	if p.pos >= len(p.toks) {
		return errorAt(p.end, "the expression ends too soon: %s", want)
	}
	return errorAt(p.at(), "unexpected %q: %s", p.peek(), want)
}

// enter goes one level deeper.
func (p *parser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return errorAt(p.at(), "nested too deep")
	}
	return nil
}

func (p *parser) leave() { p.depth-- }

// expression is terms joined by and and or, which bind equally.
func (p *parser) expression() (node, error) {
	left, err := p.term()
	if err != nil {
		return nil, err
	}
	for {
		op, ok := p.take("and", "&&", "or", "||")
		if !ok {
			return left, nil
		}
		right, err := p.operand()
		if err != nil {
			return nil, err
		}
		if op == "and" || op == "&&" {
			left = and{left, right}
		} else {
			left = or{left, right}
		}
	}
}

// operand is what follows and or or: a term, or an identifier of the kind before.
func (p *parser) operand() (node, error) {
	if p.isIdentifier() && p.last != (qualifiers{}) {
		return p.identifier(p.last)
	}
	return p.term()
}

func (p *parser) term() (node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	if _, ok := p.take("not", "!"); ok {
		n, err := p.operand()
		if err != nil {
			return nil, err
		}
		return not{n}, nil
	}
	saved := *p
	if n, ok := p.relation(); ok {
		p.last = qualifiers{}
		return n, nil
	}
	*p = saved
	if _, ok := p.take("("); ok {
		n, err := p.expression()
		if err != nil {
			return nil, err
		}
		return n, p.expect(")")
	}
	return p.primitive()
}

// relation is an arithmetic comparison; false if there is none here.
func (p *parser) relation() (node, bool) {
	left, ok := p.sum(0)
	if !ok {
		return nil, false
	}
	op, ok := p.take("=", "==", "!=", "<=", ">=", "<", ">")
	if !ok {
		return nil, false
	}
	right, ok := p.sum(0)
	if !ok {
		return nil, false
	}
	var n node
	switch op {
	case "=", "==":
		n = relation{left.value, jumpEq, right.value}
	case "!=":
		n = not{relation{left.value, jumpEq, right.value}}
	case ">":
		n = relation{left.value, jumpGt, right.value}
	case ">=":
		n = relation{left.value, jumpGe, right.value}
	case "<":
		n = not{relation{left.value, jumpGe, right.value}}
	case "<=":
		n = not{relation{left.value, jumpGt, right.value}}
	}
	// What is looked at must be there before it is.
	guards := append(left.guards, right.guards...)
	for i := len(guards) - 1; i >= 0; i-- {
		n = and{guards[i], n}
	}
	return n, true
}

// number is the value of a word, as C writes it.
func number(s string) (uint32, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 0, 32)
	return uint32(n), err == nil
}
