package config

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a file, see the package's hazards. The library takes a quarter of a
// second of one core for each megabyte.
const (
	maxSize    = 4 << 20
	maxLine    = 64 << 10
	maxNesting = 32
)

// decoder walks the syntax tree, fills in values and collects problems.
type decoder struct {
	c    *Config // for file and positions
	errs Errors
}

func newDecoder(file string) *decoder {
	c := Defaults()
	c.file, c.at = file, map[string]position{"": {line: 1, column: 1}}
	return &decoder{c: c}
}

// expect makes room for so many positions.
func (d *decoder) expect(n int) {
	at := make(map[string]position, n+len(d.c.at))
	maps.Copy(at, d.c.at)
	d.c.at = at
}

// fail notes a problem with a field whose position is known, or its parent's.
func (d *decoder) fail(path, format string, args ...any) {
	d.errs = append(d.errs, d.c.Problem(path, format, args...))
}

// failAt notes a problem at a place that is not that of the field's value.
func (d *decoder) failAt(at position, path, format string, args ...any) {
	d.errs = append(d.errs, Problem{File: d.c.file, Line: at.line, Column: at.column,
		Path: path, Message: fmt.Sprintf(format, args...)})
}

// config decodes the file over the defaults, as far as it can be understood.
// It returns false if the file is not a mapping at all.
func (d *decoder) config(data []byte) (*Config, bool) {
	root := d.parse(data)
	if root == nil {
		return nil, false
	}
	return d.c, decodeMap(d, "", root, topFields, d.c)
}

// parse returns the root of the one document, nil after an error.
func (d *decoder) parse(data []byte) ast.Node {
	start := position{line: 1, column: 1}
	if len(data) > maxSize {
		d.failAt(start, "", "the file has %d bytes, more than %d", len(data), maxSize)
		return nil
	}
	src := strings.TrimPrefix(string(data), "\ufeff")
	if !utf8.ValidString(src) {
		valid := strings.ToValidUTF8(src, "\xff")
		before := valid[:strings.IndexByte(valid, '\xff')]
		line := strings.Count(before, "\n")
		column := utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
		d.failAt(position{line: line + 1, column: column + 1}, "", "not UTF-8")
		return nil
	}
	for i, line := range strings.Split(src, "\n") {
		if len(line) > maxLine {
			d.failAt(position{line: i + 1, column: 1}, "", "a line of %d bytes, more than %d", len(line), maxLine)
			return nil
		}
	}
	tokens, err := tokenize(src)
	if err == nil && d.refuse(tokens) {
		return nil
	}
	var f *ast.File
	if err == nil {
		f, err = parseYAML(tokens)
	}
	if err != nil {
		d.syntax(src, err)
		return nil
	}
	var root ast.Node
	for _, doc := range f.Docs {
		switch {
		case doc.Body == nil:
		case root != nil:
			d.failAt(nodePosition(doc.Body), "", "a second document; a configuration is one")
			return nil
		default:
			root = doc.Body
		}
	}
	if root == nil {
		d.failAt(start, "", "the file is empty")
	}
	return root
}

// refused names the parts of YAML that a configuration does without.
var refused = map[token.Type]string{
	token.AnchorType:    "anchors",
	token.AliasType:     "aliases",
	token.TagType:       "tags",
	token.DirectiveType: "directives",
}

// refuse notes where the file uses such a part and reports whether it does. It makes room
// for the positions of the rest.
func (d *decoder) refuse(tokens token.Tokens) bool {
	found, values := false, 0
	for _, tk := range tokens {
		switch tk.Type {
		case token.MappingValueType, token.SequenceEntryType, token.CollectEntryType:
			values++
		}
		if what, bad := refused[tk.Type]; bad {
			found = true
			d.failAt(position{line: tk.Position.Line, column: tk.Position.Column}, "", "%s are not supported", what)
		}
	}
	d.expect(values)
	return found
}

// gaveUp turns a panic of the library, on input that its authors did not think
// of, into an error like any other.
func gaveUp(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the YAML parser gave up: %v", r)
	}
}

func tokenize(src string) (tokens token.Tokens, err error) {
	defer gaveUp(&err)
	tokens = lexer.Tokenize(src)
	return tokens, checkNesting(tokens)
}

func parseYAML(tokens token.Tokens) (f *ast.File, err error) {
	defer gaveUp(&err)
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// checkNesting bounds what the parser recurses on: brackets, indentation, and
// dashes and question marks one after another.
func checkNesting(tokens token.Tokens) error {
	brackets, dashes := 0, 0
	var indents []int
	for _, tk := range tokens {
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets--
		}
		switch tk.Type {
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType:
			dashes++
		default:
			dashes = 0
		}
		column := tk.Position.Column
		if p := tk.Prev; p == nil || p.Position.Line != tk.Position.Line {
			for len(indents) > 0 && indents[len(indents)-1] >= column {
				indents = indents[:len(indents)-1]
			}
			indents = append(indents, column)
		}
		if brackets > maxNesting || len(indents) > maxNesting || dashes > maxNesting {
			return &yaml.SyntaxError{Message: "nested too deeply", Token: tk}
		}
	}
	return nil
}

// bracketed is an IPv6 address and port that is not quoted.
var bracketed = regexp.MustCompile(`(?:^|[\s,{])(\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]:[0-9]+)`)

func (d *decoder) syntax(src string, err error) {
	at, message := position{line: 1, column: 1}, err.Error()
	var located yaml.Error
	if errors.As(err, &located) {
		message = located.GetMessage()
		if tk := located.GetToken(); tk != nil && tk.Position != nil {
			at = position{line: tk.Position.Line, column: tk.Position.Column}
		}
	}
	lines := strings.Split(src, "\n")
	if i := at.line - 1; i >= 0 && i < len(lines) {
		if m := bracketed.FindStringSubmatch(lines[i]); m != nil {
			message += fmt.Sprintf("; an IPv6 address with a port needs quotes: %q", m[1])
		}
	}
	d.failAt(at, "", "not valid YAML: %s", message)
}

// nodePosition is where a node begins; the library puts a block mapping at its
// first colon.
func nodePosition(n ast.Node) position {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	tk := n.GetToken()
	if tk == nil || tk.Position == nil {
		return position{line: 1, column: 1}
	}
	return position{line: tk.Position.Line, column: tk.Position.Column}
}

// describe names a node for "expected ..., got ...".
func describe(n ast.Node) string {
	switch x := n.(type) {
	case *ast.NullNode:
		return "nothing"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.MergeKeyNode:
		return "a merge key, which is not supported"
	case *ast.StringNode:
		return "the text " + shorten(x.Value)
	}
	if tk := n.GetToken(); tk != nil {
		return shorten(tk.Value)
	}
	return "something else"
}

// mapEntries returns the entries of a mapping, or notes a problem.
func (d *decoder) mapEntries(path string, n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	}
	d.failAt(nodePosition(n), path, "expected a mapping of keys to values, got %s", describe(n))
	return nil, false
}

// decodeMap fills t from a mapping by the table of its keys. It returns false
// if n is no mapping.
func decodeMap[T any](d *decoder, path string, n ast.Node, fields []field[T], t *T) bool {
	entries, ok := d.mapEntries(path, n)
	if !ok {
		return false
	}
	seen := map[string]position{}
	for _, e := range entries {
		at := nodePosition(e.Key)
		k, ok := e.Key.(*ast.StringNode)
		if !ok {
			d.failAt(at, path, "expected a key, got %s", describe(e.Key))
			continue
		}
		sub := join(path, k.Value)
		if first, ok := seen[k.Value]; ok {
			d.failAt(at, sub, "this key was already given in line %d", first.line)
			continue
		}
		seen[k.Value] = at
		f := find(fields, k.Value)
		if f == nil {
			d.failAt(at, join(path, shortKey(k.Value)), "%s", unknownKey(fields, k.Value))
			continue
		}
		d.c.at[sub] = nodePosition(e.Value)
		if f.decode != nil {
			f.decode(d, sub, e.Value, t)
		} else if s, ok := d.plainValue(sub, e.Value, f.kind, f.want); ok {
			if err := f.set(t, s); err != nil {
				d.fail(sub, "%v", err)
			}
		}
	}
	for i := range fields {
		// What is missing from the whole file is left to validate: a flag may
		// give it.
		if _, ok := seen[fields[i].key]; fields[i].required && !ok && path != "" {
			d.failAt(nodePosition(n), path, "the key %s is missing", fields[i].key)
		}
	}
	return true
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func find[T any](fields []field[T], key string) *field[T] {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	return nil
}

// shortKey keeps a nonsensical key from filling the screen.
func shortKey(key string) string {
	if key == "" || len(key) > 40 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return shorten(key)
	}
	return key
}

func unknownKey[T any](fields []field[T], got string) string {
	if strings.Contains(got, ":") {
		return "unknown key; an IPv6 address that ends in a colon must be quoted"
	}
	known := make([]string, len(fields))
	for i := range fields {
		known[i] = fields[i].key
	}
	if hint := didYouMean(got, known); hint != "" {
		return "unknown key; " + hint
	}
	return "unknown key; known here: " + strings.Join(known, ", ")
}

// plainValue returns the text of a plain value of the kind wanted.
func (d *decoder) plainValue(path string, n ast.Node, k kind, want string) (string, bool) {
	var s string
	var is kind
	switch x := n.(type) {
	case *ast.StringNode:
		s, is = x.Value, text
	case *ast.IntegerNode:
		s, is = x.GetToken().Value, number
	case *ast.BoolNode:
		s, is = x.GetToken().Value, boolean
	case *ast.FloatNode:
		s, is = x.GetToken().Value, anyPlain
	default:
		d.fail(path, "expected %s, got %s", want, describe(n))
		return "", false
	}
	if k != anyPlain && is != k {
		hint := ""
		if k == text {
			hint = "; quote it if it is meant as text"
		}
		d.fail(path, "expected %s, got %s%s", want, describe(n), hint)
		return "", false
	}
	return s, true
}

// items returns the nodes of a list, or notes a problem.
func (d *decoder) items(path string, n ast.Node, of string) ([]ast.Node, bool) {
	l, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(path, "expected a list of %s, got %s", of, describe(n))
		return nil, false
	}
	return l.Values, true
}

// decodeList decodes a list of mappings. An element that cannot be understood
// is in the result too, so that indices are those of the file. The result is
// nil only if there is no list.
func decodeList[T any](d *decoder, path string, n ast.Node, fields []field[T], of string, fresh func() T) []T {
	items, ok := d.items(path, n, of)
	if !ok {
		return nil
	}
	out := make([]T, 0, len(items))
	for i, item := range items {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.c.at[sub] = nodePosition(item)
		t := fresh()
		decodeMap(d, sub, item, fields, &t)
		out = append(out, t)
	}
	return out
}

func decodeInterfaces(d *decoder, path string, n ast.Node, c *Config) {
	c.Interfaces = decodeList(d, path, n, interfaceFields, "interfaces", func() (i Interface) { return i })
}

func decodeVLANs(d *decoder, path string, n ast.Node, i *Interface) {
	i.VLANs = decodeList(d, path, n, vlanFields, "VLANs", func() (v VLAN) { return v })
	if len(i.VLANs) == 0 {
		i.VLANs = nil // as without the key
	}
}

func decodeServices(d *decoder, path string, n ast.Node, c *Config) {
	c.Services = decodeList(d, path, n, serviceFields, "services", defaultService)
}

func decodeBackends(d *decoder, path string, n ast.Node, s *Service) {
	s.Backends = decodeList(d, path, n, backendFields, "backends", defaultBackend)
}

func decodeLocals(d *decoder, path string, n ast.Node, c *Config) {
	items, ok := d.items(path, n, "addresses")
	if ok {
		c.LocalAddresses = []LocalRange{}
	}
	for i, item := range items {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.c.at[sub] = nodePosition(item)
		var r LocalRange
		if item.Type() == ast.MappingType || item.Type() == ast.MappingValueType {
			decodeMap(d, sub, item, localFields, &r)
		} else if s, ok := d.plainValue(sub, item, text, wantRange); ok {
			if err := localFields[0].set(&r, s); err != nil {
				d.fail(sub, "%v", err)
			}
		}
		c.LocalAddresses = append(c.LocalAddresses, r)
	}
}
