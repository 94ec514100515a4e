package filter

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// Wanted is what a program returns for a frame that the filter admits: more bytes than
// any frame has. For others it is 0.
const Wanted = 1 << 18

// maxLen bounds an expression, and maxDepth what is nested in it.
const (
	maxLen   = 8192
	maxDepth = 100
)

// Error is what is wrong with an expression.
type Error struct {
	At      int // byte of the expression where it was noticed, from 0
	Problem string
}

func (e *Error) Error() string { return fmt.Sprintf("filter: character %d: %s", e.At+1, e.Problem) }

func errorAt(at int, format string, args ...any) error {
	return &Error{At: at, Problem: fmt.Sprintf(format, args...)}
}

// Compile makes the program for an expression. The empty one admits everything. An
// error is an [*Error] where it has a place in the expression.
func Compile(expr string) ([]bpf.RawInstruction, error) {
	if len(expr) > maxLen {
		return nil, errorAt(maxLen, "longer than %d bytes", maxLen)
	}
	toks, err := lex(expr)
	if err != nil {
		return nil, err
	}
	var root node = always{}
	if len(toks) > 0 {
		p := parser{toks: toks, end: len(expr)}
		if root, err = p.expression(); err == nil && p.pos < len(toks) {
			err = errorAt(p.at(), "unexpected %q", p.peek())
		}
		if err != nil {
			return nil, err
		}
	}
	var c coder
	yes, no := c.label(), c.label()
	root.emit(&c, yes, no)
	c.place(yes)
	c.op(opRet, Wanted)
	c.place(no)
	c.op(opRet, 0)
	code, err := c.layout()
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	return code, nil
}
