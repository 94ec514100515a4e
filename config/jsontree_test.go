package config

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// asYAML is how documents were read before: as YAML, on many lines, without indentation.
func asYAML(data []byte) (Service, string) {
	d, s := newDecoder("k"), defaultService()
	var lines bytes.Buffer
	if err := json.Indent(&lines, data, "", ""); err != nil {
		return s, "no JSON"
	}
	if root := d.parse(lines.Bytes()); root != nil {
		decodeMap(d, "", root, serviceFields, &s)
	}
	return s, d.unplaced().Error()
}

func asJSON(data []byte) (Service, string) {
	d, s := newDecoder("k"), defaultService()
	decodeDocument(d, data, serviceFields, &s)
	return s, d.unplaced().Error()
}

var inLine = regexp.MustCompile(` in line \d+`) // of another text

// randomJSON is about what a service has, and often wrong.
func randomJSON(t *rapid.T, depth int) string {
	scalar := rapid.SampledFrom([]string{
		`"192.0.2.1:80"`, `"tcp"`, `"dnat"`, `"1m"`, `"a\u00e9\n\"\t\\"`, `""`, `"null"`, `"7"`, `"true"`, `"a: b"`, `"# no"`, `" x "`,
		`"\ud83d\ude00"`, "7", "-7", "0", "7.5", "18446744073709551615", "true", "false", "null",
	})
	if depth == 0 {
		return scalar.Draw(t, "scalar")
	}
	var parts []string
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		for range rapid.IntRange(0, 3).Draw(t, "length") {
			parts = append(parts, randomJSON(t, depth-1))
		}
		return "[" + strings.Join(parts, rapid.SampledFrom([]string{",", ", ", ",\n\t"}).Draw(t, "between")) + "]"
	case 1:
		return scalar.Draw(t, "scalar")
	}
	for range rapid.IntRange(0, 6).Draw(t, "keys") {
		key := rapid.SampledFrom([]string{"address", "protocol", "mode", "weight", "backends", "health_check", "type", "expect_status", "timeouts", "tcp_close", "colour", "a b", ""}).Draw(t, "key")
		value := randomJSON(t, depth-1)
		if key == "backends" && rapid.Bool().Draw(t, "a list of one") {
			value = "[" + value + "]"
		}
		parts = append(parts, `"`+key+`": `+value)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// soundJSON are documents without a fault: of random ones hardly any is.
var soundJSON = []string{
	`{}`,
	`{"address": "192.0.2.1:80", "protocol": "tcp", "mode": "dnat"}`,
	`{"address": "192.0.2.1:80",
	  "backends": [{"address": "10.0.0.1:80", "weight": 7}, {"address": "[2001:db8::1]:80"}]}`,
	`{"mode": "dnat", "backends": [], "health_check": {"type": "http", "expect_status": "200-299", "path": "/\u0061:\u0023b"}}`,
	`{"protocol":"udp","timeouts":{"udp_one_way":"1m"}}`,
}

// sameAsYAML reads text both ways and returns what was wrong with it.
func sameAsYAML(t rapid.TB, text []byte) (wrong string) {
	t.Helper()
	want, wrong := asYAML(text)
	got, err := asJSON(text)
	if diff := cmp.Diff(inLine.ReplaceAllString(wrong, ""), inLine.ReplaceAllString(err, "")); diff != "" {
		t.Errorf("%s\n(-YAML +JSON):\n%s", text, diff)
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("%s\n(-YAML +JSON):\n%s", text, diff)
	}
	return wrong
}

// TestJSONAsYAML: a document means what it meant as YAML, and what is wrong with it is
// said in the same words and order.
func TestJSONAsYAML(t *testing.T) {
	for _, text := range soundJSON {
		if wrong := sameAsYAML(t, []byte(text)); wrong != "" {
			t.Fatalf("%s\n%s", text, wrong)
		}
	}
	rapid.Check(t, func(t *rapid.T) { sameAsYAML(t, []byte(randomJSON(t, 4))) })
}
