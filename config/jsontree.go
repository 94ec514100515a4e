package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// errNesting is that of a document that the decoder would recurse too deeply on.
var errNesting = errors.New("nested too deeply")

// parseJSON returns the root of a JSON document as the YAML parser has it, nil after an
// error. The standard library reads it many times faster, and takes lines of any length
// and tabs.
func (d *decoder) parseJSON(data []byte) ast.Node {
	if len(data) > maxSize {
		d.fail("", "%d bytes, more than %d", len(data), maxSize)
		return nil
	}
	if !utf8.Valid(data) {
		d.fail("", "not UTF-8")
		return nil
	}
	err := json.Unmarshal(data, new(json.RawMessage)) // it is one value, and a valid one
	if err == nil {
		t := jsonTree{data: data, from: json.NewDecoder(bytes.NewReader(data)), line: 1}
		t.from.UseNumber()
		var root ast.Node
		if root, err = t.value(0); err == nil {
			d.expect(t.values)
			return root
		}
	}
	d.fail("", "not valid JSON: %v", err)
	return nil
}

// jsonTree makes nodes of the tokens of a document.
type jsonTree struct {
	data   []byte
	from   *json.Decoder
	line   int // of the byte at seen, from 1
	seen   int
	values int // so far
	base   ast.BaseNode
}

// token returns the next token, and where it ends: the column counts bytes of the document
// from its beginning, so that places are in order however it is written.
func (t *jsonTree) token() (json.Token, *token.Position, error) {
	tk, err := t.from.Token()
	at := int(t.from.InputOffset())
	t.line += bytes.Count(t.data[t.seen:at], []byte("\n"))
	t.seen = at
	return tk, &token.Position{Line: t.line, Column: at}, err
}

// value reads a value within so many others.
func (t *jsonTree) value(depth int) (ast.Node, error) {
	t.values++
	tk, at, err := t.token()
	if err != nil {
		return nil, err
	}
	return t.node(tk, at, depth)
}

func (t *jsonTree) node(tk json.Token, at *token.Position, depth int) (ast.Node, error) {
	switch v := tk.(type) {
	case string:
		return t.text(v, at), nil
	case json.Number:
		s := v.String()
		if strings.ContainsAny(s, ".eE") {
			return &ast.FloatNode{BaseNode: &t.base, Token: &token.Token{Type: token.FloatType, Value: s, Position: at}}, nil
		}
		return &ast.IntegerNode{BaseNode: &t.base, Token: &token.Token{Type: token.IntegerType, Value: s, Position: at}}, nil
	case bool:
		s := "false"
		if v {
			s = "true"
		}
		return ast.Bool(&token.Token{Type: token.BoolType, Value: s, Position: at}), nil
	case json.Delim:
		switch {
		case depth == maxNesting:
			return nil, errNesting
		case v == '{':
			return t.object(at, depth+1)
		}
		return t.list(at, depth+1)
	}
	return ast.Null(&token.Token{Type: token.NullType, Value: "null", Position: at}), nil
}

func (t *jsonTree) text(s string, at *token.Position) *ast.StringNode {
	return &ast.StringNode{BaseNode: &t.base, Value: s, Token: &token.Token{Type: token.DoubleQuoteType, Value: s, Position: at}}
}

func (t *jsonTree) object(at *token.Position, depth int) (ast.Node, error) {
	m := ast.Mapping(token.MappingStart("{", at), true)
	for t.from.More() {
		tk, at, err := t.token()
		if err != nil {
			return nil, err
		}
		name, ok := tk.(string)
		if !ok {
			return nil, io.ErrUnexpectedEOF // a key is nothing else
		}
		key := t.text(name, at)
		value, err := t.value(depth)
		if err != nil {
			return nil, err
		}
		m.Values = append(m.Values, &ast.MappingValueNode{BaseNode: &t.base, Start: key.Token, Key: key, Value: value})
	}
	_, _, err := t.token()
	return m, err
}

func (t *jsonTree) list(at *token.Position, depth int) (ast.Node, error) {
	l := ast.Sequence(token.SequenceStart("[", at), true)
	for t.from.More() {
		value, err := t.value(depth)
		if err != nil {
			return nil, err
		}
		l.Values = append(l.Values, value)
	}
	_, _, err := t.token()
	return l, err
}
