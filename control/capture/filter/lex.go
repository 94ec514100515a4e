package filter

import (
	"strings"
)

// token is a word or an operator of the expression.
type token struct {
	text string
	at   int  // its first byte in the expression
	word bool // of letters, digits, dots, colons and hyphens
}

// operators, the longer ones first.
var operators = []string{"&&", "||", "<<", ">>", "<=", ">=", "==", "!=", "(", ")", "[", "]", ":", "!", "=", "<", ">", "&", "|", "+", "-", "*", "/", "%", "^", "\\"}

// lex splits an expression. Within brackets a colon stands before a size; elsewhere it
// is part of an address.
func lex(s string) ([]token, error) {
	var out []token
	brackets := 0
	for i := 0; i < len(s); {
		if strings.IndexByte(" \t\r\n", s[i]) >= 0 {
			i++
			continue
		}
		if n := wordLen(s[i:], brackets > 0); n > 0 {
			out = append(out, token{s[i : i+n], i, true})
			i += n
			continue
		}
		op := ""
		for _, o := range operators {
			if strings.HasPrefix(s[i:], o) {
				op = o
				break
			}
		}
		switch op {
		case "":
			return nil, errorAt(i, "unexpected character %q", s[i])
		case "[":
			brackets++
		case "]":
			brackets--
		}
		out = append(out, token{text: op, at: i})
		i += len(op)
	}
	return out, nil
}

// wordLen is the length of the word that s begins with, 0 if it begins with none. A
// hyphen belongs to a word within it only: tcp-syn, 80-90.
func wordLen(s string, bracketed bool) int {
	n := 0
	for n < len(s) {
		c := s[n]
		switch {
		case alphanumeric(c), c == '_':
		case c == '.' && n > 0:
		case c == '-' && n > 0 && n+1 < len(s) && alphanumeric(s[n+1]):
		case c == ':' && !bracketed && (n > 0 || strings.HasPrefix(s, "::")):
		default:
			return n
		}
		n++
	}
	return n
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
