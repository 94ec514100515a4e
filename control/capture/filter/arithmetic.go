package filter

// guarded is a value and what must be true before it may be asked for.
type guarded struct {
	value  value
	guards []node
}

// levels are the binary operators, those that bind least first.
var levels = [][]string{{"|", "&", "^"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}

var operations = map[string]uint16{
	"|": opOr, "&": opAnd, "^": opXor, "<<": opLsh, ">>": opRsh,
	"+": opAdd, "-": opSub, "*": opMul, "/": opDiv, "%": opMod,
}

// sum is arithmetic whose operators bind at least as level's; false if there is none
// here.
func (p *parser) sum(level int) (guarded, bool) {
	if level == len(levels) {
		return p.factor()
	}
	left, ok := p.sum(level + 1)
	if !ok {
		return left, false
	}
	for {
		op, ok := p.take(levels[level]...)
		if !ok {
			return left, true
		}
		right, ok := p.sum(level + 1)
		if !ok {
			return left, false
		}
		if k, constant := right.value.(constant); constant && k == 0 && (op == "/" || op == "%") {
			return left, false
		}
		left = guarded{operation{operations[op], left.value, right.value}, append(left.guards, right.guards...)}
	}
}

// factor is a number, what is in the packet, or arithmetic in parentheses.
func (p *parser) factor() (guarded, bool) {
	if p.enter() != nil {
		return guarded{}, false
	}
	defer p.leave()
	if _, ok := p.take("-"); ok {
		g, ok := p.factor()
		g.value = negated{g.value}
		return g, ok
	}
	if _, ok := p.take("("); ok {
		g, ok := p.sum(0)
		if _, closed := p.take(")"); !closed {
			return g, false
		}
		return g, ok
	}
	word := p.peek()
	p.pos++
	if p.peek() == "[" && word != "" {
		p.pos++
		return p.load(word)
	}
	if word == "len" {
		return guarded{value: length{}}, true
	}
	if k, ok := number(word); ok {
		return guarded{value: constant(k)}, true
	}
	k, ok := constants[word]
	return guarded{value: constant(k)}, ok
}

// maxOffset is beyond the end of any frame.
const maxOffset = 1 << 16

// load is proto[index:size], read as far as the opening bracket.
func (p *parser) load(proto string) (g guarded, ok bool) {
	index, ok := p.sum(0)
	if !ok {
		return g, false
	}
	size := uint32(1)
	if _, ok := p.take(":"); ok {
		size, ok = number(p.peek())
		if p.pos++; !ok || size != 1 && size != 2 && size != 4 {
			return g, false
		}
	}
	if _, ok := p.take("]"); !ok {
		return g, false
	}
	k, fixed := index.value.(constant)
	if fixed && k > maxOffset {
		return g, false
	}
	var base uint32
	behind := false
	ip := etherType(p.shift, typeIPv4)
	switch proto {
	case "ether", "link":
	case "ip", "ip6", "arp", "rarp":
		base = p.network()
		g.guards = append(g.guards, p.abbreviation(proto))
	case "icmp6":
		base = p.network() + ipv6Len
		g.guards = append(g.guards, etherType(p.shift, typeIPv6))
		index.guards = append(index.guards, p.byteIs(ipv6NextHeader, protoICMPv6))
	default:
		if _, known := transports[proto]; !known {
			return g, false
		}
		base, behind = p.network(), true
		g.guards = append(g.guards, ip)
		index.guards = append(index.guards, p.abbreviation(proto), p.unfragmented())
	}
	g.guards = append(g.guards, index.guards...)
	switch {
	case fixed && !behind:
		g.value = field{at: base + uint32(k), size: size}
	case fixed:
		g.value = computed{base: base + uint32(k), behind: true, header: base, size: size}
	default:
		g.value = computed{base: base, index: index.value, behind: behind, header: base, size: size}
	}
	return g, true
}
