package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// twin adds to a Sum, and has With judge all of the same.
type twin struct {
	t        *testing.T
	base     *Config
	sum      *Sum
	services []*ServiceDocument
	backends map[string][]*BackendDocument
}

func newTwin(t *testing.T, base *Config) *twin {
	return &twin{t: t, base: base, sum: base.Sum(nil), backends: map[string][]*BackendDocument{}}
}

// all is what has been accepted, and one more.
func (w *twin) all(s *ServiceDocument, of string, b *BackendDocument) (out []Found) {
	services := slices.Clone(w.services)
	if s != nil {
		services = append(services, s)
	}
	slices.SortFunc(services, func(a, b *ServiceDocument) int { return strings.Compare(a.Name(), b.Name()) })
	for _, s := range services {
		backends := slices.Clone(w.backends[s.Name()])
		if b != nil && s.Name() == of {
			backends = append(backends, b)
		}
		slices.SortFunc(backends, func(a, b *BackendDocument) int { return strings.Compare(a.source, b.source) })
		out = append(out, Found{s, backends})
	}
	return out
}

func (w *twin) compare(what string, got, want error) bool {
	w.t.Helper()
	if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" {
		w.t.Fatalf("%s (-With +Sum):\n%s", what, diff)
	}
	return got == nil
}

func (w *twin) service(key, text string) bool {
	w.t.Helper()
	s := mustService(w.t, key, key, text)
	_, want := w.base.With(w.all(s, "", nil))
	ok := w.compare(key, w.sum.AddService(s), want)
	if ok {
		w.services = append(w.services, s)
	}
	return ok
}

func (w *twin) backend(of, id, text string) bool {
	w.t.Helper()
	b := mustBackend(w.t, of+"/"+id, text)
	_, want := w.base.With(w.all(nil, of, b))
	ok := w.compare(b.source, w.sum.AddBackend(of, b), want)
	if ok {
		w.backends[of] = append(w.backends[of], b)
	}
	return ok
}

// What counts backends or the memory of tables counts all of them, not only those that a
// document is compared with.
func TestSumCountsAll(t *testing.T) {
	w := newTwin(t, mustParse(t, fileAlone+`
services: [{name: web, address: "192.0.2.10:80", protocol: tcp, mode: dnat, scheduler: sh, hash_table_size: 8388617, backends: [{address: "10.0.1.20:80"}]}]`))
	for i := range 255 {
		b := mustBackend(t, fmt.Sprintf("few/%d", i), fmt.Sprintf(`{"address":"10.0.2.1:%d"}`, 1+i))
		if err := w.sum.AddBackend("few", b); err != nil { // whose service is not there yet
			t.Fatal(err)
		}
		w.backends["few"] = append(w.backends["few"], b)
	}
	few := func(slots int) bool {
		return w.service("few", fmt.Sprintf(`{"address":"192.0.2.11:80","protocol":"tcp","mode":"dnat","scheduler":"maglev","hash_table_size":%d}`, slots))
	}
	if few(251) || !few(257) {
		t.Error("255 backends go into 257 slots, not 251")
	}
	for i := range 4 {
		if ok := w.backend("few", fmt.Sprint("m", i), fmt.Sprintf(`{"address":"10.0.3.%d:80"}`, i)); ok != (i < 2) {
			t.Errorf("backend %d of 257: %v", 256+i, ok)
		}
	}
	refused := 0
	for i := range 70 {
		if !w.service(fmt.Sprintf("s%02d", 69-i), fmt.Sprintf(`{"address":"192.0.2.12:%d","protocol":"tcp","mode":"dnat","scheduler":"sh","hash_table_size":8388617,"backends":[{"address":"10.0.0.1:80"}]}`, 1+i)) {
			refused++
		}
	}
	if refused == 0 || refused == 70 {
		t.Errorf("%d of 70 services with tables of 16 MiB are refused", refused)
	}
	// What is left is less than a table grows by when its service gets more backends.
	w.service("t", `{"address":"192.0.2.13:80","protocol":"tcp","mode":"dnat","scheduler":"sh"}`)
	for i := range 40 {
		w.service(fmt.Sprint("u", i), fmt.Sprintf(`{"address":"192.0.2.14:%d","protocol":"tcp","mode":"dnat","scheduler":"sh","hash_table_size":262139,"backends":[{"address":"10.0.0.1:80"}]}`, 1+i))
	}
	grown := 0
	for i := range 4000 {
		b := mustBackend(t, fmt.Sprintf("t/%04d", i), fmt.Sprintf(`{"address":"10.0.4.1:%d"}`, 1+i))
		if err := w.sum.AddBackend("t", b); err != nil {
			_, want := w.base.With(w.all(nil, "t", b))
			w.compare(b.source, err, want)
			break
		}
		w.backends["t"] = append(w.backends["t"], b)
		grown++
	}
	if _, err := w.base.With(w.all(nil, "", nil)); err != nil || grown < 656 || grown == 4000 {
		t.Errorf("%v; %d backends", err, grown)
	}
}

// Who is named is who With names.
func TestSumNames(t *testing.T) {
	w := newTwin(t, mustParse(t, fileAlone))
	const dnat = `{"address":"192.0.2.11:80","protocol":"tcp","mode":"dnat","backends":[%s]}`
	backend := func(of, id string, octet, server int) bool {
		return w.backend(of, id, fmt.Sprintf(`{"address":"10.0.0.%d:80","server_id":%d}`, octet, server))
	}
	// A service that has its backends from elsewhere comes before those that have none.
	if !w.service("m", fmt.Sprintf(dnat, "")) || !backend("m", "5", 5, 0) || w.service("z", fmt.Sprintf(dnat, "")) || w.service("a", fmt.Sprintf(dnat, "")) {
		t.Error("services at one address")
	}
	// A backend of another family is another one's fault if it comes first.
	if w.backend("m", "9", `{"address":"[2001:db8::1]:80"}`) || w.backend("m", "1", `{"address":"[2001:db8::1]:80"}`) || backend("m", "1", 5, 0) || !backend("m", "2", 2, 0) {
		t.Error("backends of one service")
	}
	w.service("q", `{"address":"192.0.2.11:443","protocol":"udp","mode":"full-nat","quic":{"layout":"katran"}}`)
	if !backend("q", "3", 1, 1) || backend("q", "4", 2, 1) || backend("q", "2", 3, 1) || backend("q", "2", 3, 0) || !backend("q", "2", 3, 2) {
		t.Error("server IDs")
	}
	for i, text := range []string{
		`{"address":"10.0.0.5:80","protocol":"udp","mode":"dnat","backends":[{"address":"10.0.0.7:80"}]}`,
		`{"address":"192.0.2.12:80","protocol":"udp","mode":"dnat","backends":[{"address":"192.0.2.11:1"},{"address":"10.0.1.10:80"}]}`,
	} {
		if w.service(fmt.Sprint("v", i), text) {
			t.Errorf("taken: %s", text)
		}
	}
}

// However many documents are refused, each costs a few looks at others.
func TestSumCost(t *testing.T) {
	const n = 4000
	base := mustParse(t, fileAlone+`
services: [{name: web, address: "192.0.2.10:80", protocol: tcp, mode: dnat, backends: [{address: "10.0.1.20:80"}]}]`)
	s := base.Sum(nil)
	refused := 0
	add := func(err error) {
		if err != nil {
			refused++
		}
	}
	// One service, every other backend of which is the one before it.
	add(s.AddService(mustService(t, "a", "a", `{"address":"192.0.2.11:80","protocol":"tcp","mode":"dnat","backends":[]}`)))
	for i := range n {
		add(s.AddBackend("a", mustBackend(t, fmt.Sprintf("a/%d", i), fmt.Sprintf(`{"address":"10.0.2.%d:%d"}`, i%4/2, 1+i/4))))
	}
	// Services, every other of which is the one before it; and those at whose address
	// are backends.
	for i := range n {
		key, at := fmt.Sprintf("s%d", i), fmt.Sprintf("192.0.2.12:%d", 1+i/2)
		if i%4 == 3 {
			at = fmt.Sprintf("10.0.3.%d:%d", i%250, i)
		}
		add(s.AddService(mustService(t, key, key, fmt.Sprintf(`{"address":%q,"protocol":"tcp","mode":"dnat","backends":[{"address":"10.0.3.%d:80"}]}`, at, i%250))))
	}
	if refused < n/2+n/4 {
		t.Errorf("%d are refused", refused)
	}
	if most := 2 * n * 10; s.looked > most {
		t.Errorf("%d services and backends looked at for %d documents, more than %d", s.looked, 2*n, most)
	}
	t.Logf("%d documents, %d refused, %d looks", 2*n, refused, s.looked)
}
