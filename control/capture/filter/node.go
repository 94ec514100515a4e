package filter

// node is a condition, or several joined: what the parser makes of an expression.
type node interface {
	// emit appends code that goes on at yes or at no.
	emit(c *coder, yes, no label)
}

// and is true if both are, in this order: what b looks at may not be there unless a is
// true. Likewise or.
type and struct{ a, b node }
type or struct{ a, b node }
type not struct{ a node }

// relation compares an expression by one of BPF's jumps.
type relation struct {
	left  value
	op    jump
	right value
}

// always is true.
type always struct{}

func (n and) emit(c *coder, yes, no label) {
	next := c.label()
	n.a.emit(c, next, no)
	c.place(next)
	n.b.emit(c, yes, no)
}

func (n or) emit(c *coder, yes, no label) {
	next := c.label()
	n.a.emit(c, yes, next)
	c.place(next)
	n.b.emit(c, yes, no)
}

func (n not) emit(c *coder, yes, no label) { n.a.emit(c, no, yes) }

func (always) emit(c *coder, yes, _ label) { c.jumpTo(yes) }

func (n relation) emit(c *coder, yes, no label) {
	if k, ok := n.right.(constant); ok {
		n.left.emit(c)
		c.branch(n.op, uint32(k), yes, no)
		return
	}
	slot := c.push()
	n.right.emit(c)
	c.store(slot)
	n.left.emit(c)
	c.loadX(slot)
	c.pop()
	c.branch(n.op|srcX, 0, yes, no)
}

// all joins conditions by and.
func all(first node, more ...node) node {
	for _, n := range more {
		first = and{first, n}
	}
	return first
}

// either joins conditions by or.
func either(first node, more ...node) node {
	for _, n := range more {
		first = or{first, n}
	}
	return first
}

// value is a number that the program computes into the accumulator.
type value interface{ emit(c *coder) }

type constant uint32
type length struct{}

// field is what is at a place that the program knows beforehand, if masked with and.
type field struct {
	at   uint32
	size uint32 // 1, 2 or 4
	mask uint32 // 0: all
}

// computed is what is at a place that depends on the packet: base, plus index if there
// is one, plus the length of the IPv4 header that begins at header if behind is set.
type computed struct {
	base   uint32
	index  value
	behind bool
	header uint32
	size   uint32
}

type operation struct {
	op          uint16
	left, right value
}
type negated struct{ of value }

func (k constant) emit(c *coder) { c.op(opLdImm, uint32(k)) }

func (length) emit(c *coder) { c.op(opLdLen, 0) }

func (f field) emit(c *coder) {
	c.op(opLdAbs|sizes[f.size], f.at)
	if f.mask != 0 {
		c.op(opAnd, f.mask)
	}
}

func (f computed) emit(c *coder) {
	switch {
	case f.index == nil:
		c.op(opLdxMSH, f.header)
	case !f.behind:
		f.index.emit(c)
		c.op(opTAX, 0)
	default:
		f.index.emit(c)
		c.op(opLdxMSH, f.header)
		c.op(opAdd|srcX, 0)
		c.op(opTAX, 0)
	}
	c.op(opLdInd|sizes[f.size], f.base)
}

func (b operation) emit(c *coder) {
	if k, ok := b.right.(constant); ok {
		b.left.emit(c)
		c.op(b.op, uint32(k))
		return
	}
	slot := c.push()
	b.right.emit(c)
	c.store(slot)
	b.left.emit(c)
	c.loadX(slot)
	c.pop()
	c.op(b.op|srcX, 0)
}

func (n negated) emit(c *coder) {
	// As two's complement has it: not everybody who runs programs knows BPF_NEG.
	n.of.emit(c)
	c.op(opXor, ^uint32(0))
	c.op(opAdd, 1)
}
