# l4fwd: what there is to make. CI runs .ci/run: `make test`, and more.
#
#   build         the binary, static, into bin/l4fwd
#   test          everything in its short form, namespaces included (root); what the
#                 property tests draw is the same each time, unless RAPID_SEED=0
#   test-full     the whole matrix, the long runs, the race detector and 20 s of fuzzing
#                 for each target; draws anew
#   cover         statement coverage of packet, conntrack and nat, 90 % at least
#   fuzz          every fuzz target there is, FUZZTIME each (10s unless given)
#   race          the control plane and all else outside the rings, race detector on;
#                 RACESKIP=none: that too which waits for networks more than it shares
#   bench         the forwarding benchmark over a generated capture
#   bench-check   fail if the forwarder has become slower than its bounds, allocates,
#                 or has new bounds checks or calls in the files packets go through
#   bench-peers   l4fwd live beside DPDK, nftables, HAProxy and nginx: table, page and
#                 charts in docs/benchmarks; installs them (root, Debian)
#   bench-bounds  list those checks and calls anew, after a change that is meant
#   pgo           measure by what builds are optimised (cmd/l4fwd/default.pgo) anew,
#                 after changes of much that packets go through
#   golden        record bench/testdata/golden again, after a change that is meant
#   generate      compile the eBPF programs again (needs clang-14)
#   generate-check  fail if a committed eBPF object is not what its source gives
#   lint          golangci-lint, a pinned version
#   man           manual pages of all commands and of the configuration, into dist/man
#   deb           a Debian package, into dist; the same revision gives the same bytes
#   install       binary, unit, manual pages and completions below PREFIX (/usr/local)
#   demo          a small network of its own with a forwarder in it (root)
#   deps          what the tests need beside Go: Debian packages

GO        ?= go
LINT      := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PACKAGES  := clang-14 llvm-14 ethtool iproute2 nginx-light libnginx-mod-stream nftables wrk iperf3 curl prometheus tcpdump tshark strace systemd chromium fonts-dejavu-core etcd-server etcd-client
COMMANDS  := clang-14 llvm-strip-14 ethtool ip nginx nft wrk iperf3 curl prometheus promtool tcpdump tshark strace systemd-analyze chromium etcd etcdctl
# Beside them, what bench-peers measures. Debian has testpmd in dpdk-dev, and its
# driver for AF_XDP in a package that nothing asks for.
PEERS     := dpdk dpdk-dev librte-net-af-xdp23 haproxy
# Tests that run a forwarder share two cores with it, so packages go one at a
# time. The log is kept: a test that was skipped is a test that failed.
TESTFLAGS := -count=1 -p 1 -timeout 20m
TESTLOG   := bin/test.log
FUZZTIME  ?= 10s
# A search that finds something new in whatever somebody happens to submit tells him
# nothing of his change; test-full and fuzz are there to search.
RAPID_SEED ?= 1
PREFIX    ?= /usr/local
DESTDIR   ?=
# The same for a revision whenever it is built.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)

test cover race: export RAPID_SEED := $(RAPID_SEED)
test-full: export RAPID_SEED := 0

.PHONY: build test test-full cover fuzz race bench bench-check bench-peers bench-bounds pgo golden generate generate-check lint man deb install demo deps clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/l4fwd ./cmd/l4fwd

test: deps
	@mkdir -p bin
	$(GO) vet ./...
	@sh .ci/go-test $(TESTLOG) $(GO) test $(TESTFLAGS) -short ./...
	$(GO) test -tags purego -short -count=1 ./conntrack ./dataplane # what other processors have instead of assembly
	$(MAKE) cover

test-full: deps
	@mkdir -p bin
	@sh .ci/go-test $(TESTLOG) $(GO) test $(TESTFLAGS) -timeout 60m ./...
	$(MAKE) race RACESKIP=none
	$(MAKE) fuzz FUZZTIME=20s

# What rewrites packets and keeps flows is tested to the last branch or nearly.
cover:
	@mkdir -p bin
	@$(GO) test -short -count=1 -p 1 -timeout 10m -cover ./packet ./conntrack ./nat >bin/cover.log || { cat bin/cover.log; exit 1; }
	@awk -v least=90 '{ print } match($$0, /coverage: [0-9.]+%/) { n++; if (substr($$0, RSTART+10)+0 < least) low = 1 } \
		END { if (low || n != 3) { print "coverage: want " least "% of each of 3 packages"; exit 1 } }' bin/cover.log

fuzz: deps
	@sh .ci/fuzz $(FUZZTIME) $(GO)

# The rings are shared with the kernel, which the detector cannot see; all else
# of what runs in several threads is here.
# These wait for networks and browsers more than they share anything, or measure what one
# thread does; make test has them without the detector, test-full with it.
RACESKIP = ^(TestPassive(TakesDown|Flood|FindsWhatIsFiltered)|TestProbeAddresses|TestPageDrains|TestBrowser|TestDashboardAnswers|TestInterface(Down|Returns)|Test.*InProportion)$$
race:
	$(GO) test -race -short -count=1 -p 1 -timeout 15m -skip '$(RACESKIP)' ./config/... ./balance/... ./control/... ./dataplane ./dataplane/route/...

bench: build
	bin/l4fwd bench gen -c bench/testdata/bench.yaml --flows 65536 --packets 1000000 --size 64 -o bin/64k.pcap
	bin/l4fwd bench replay -c bench/testdata/bench.yaml --pcap bin/64k.pcap --loops 20

# The bounds are ratios to the least work there is, measured in turn, so that it
# does not matter much what else the machine does.
bench-check: build
	bin/l4fwd bench check -c bench/testdata/matrix.yaml --bounds bench/bounds.json
	$(GO) test -tags benchcheck -count=1 -timeout 10m ./bench/hot

bench-peers: build deps
	@command -v dpdk-testpmd >/dev/null && command -v haproxy >/dev/null && ls /usr/lib/*/dpdk/pmds-*/librte_net_af_xdp.so* >/dev/null 2>&1 || \
		{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(PEERS); }
	bin/l4fwd bench peers $(PEERSFLAGS) --charts docs/benchmarks

bench-bounds:
	$(GO) test -tags benchcheck -count=1 -run '^TestTree$$' ./bench/hot -update

# What the profile is of: whole connections, packets of established flows, two workers
# that hand over all replies, a flood; of Worker.Poll alone, not of who makes the packets.
PGORUN := bin/l4fwd bench
PGOOF  := -c bench/testdata/matrix.yaml --limit=false

pgo: build
	@rm -rf bin/pgo && mkdir -p bin/pgo
	@for s in tcp4 tcp6 dnat4 toa4; do \
		$(PGORUN) lives $(PGOOF) --service $$s --rounds 15 --cpuprofile bin/pgo/lives-$$s || exit 1; done
	@for s in tcp4 udp4 tcp6 dnat4 toa4 nat64 dsr4 ipip4 gue4in6; do \
		$(PGORUN) replay $(PGOOF) --service $$s --synthesize --rounds 15 --cpuprofile bin/pgo/$$s || exit 1; done
	$(PGORUN) replay $(PGOOF) --service tcp4 --synthesize --rounds 15 --workers 2 --arrive away --cpuprofile bin/pgo/away
	$(PGORUN) flood $(PGOOF) --service tcp4 --cpuprofile bin/pgo/flood
	$(GO) tool pprof -proto -focus 'dataplane\.\(\*Worker\)\.Poll' -output cmd/l4fwd/default.pgo bin/l4fwd bin/pgo/*

golden:
	$(GO) test -count=1 -run '^TestGolden$$' ./bench -update

generate:
	$(GO) generate ./...

generate-check:
	./dataplane/steer/generate.sh -check
	./rs/generate.sh -check

lint:
	$(GO) run $(LINT) run ./...

man: build
	rm -rf dist/man
	bin/l4fwd man dist/man
	$(GO) run ./deploy/manual <docs/configuration.md | $(GO) run github.com/cpuguy83/go-md2man/v2 -out dist/man/l4fwd.yaml.5

deb: man
	deploy/debian/build bin/l4fwd dist/man dist

install: man
	install -D -m 755 bin/l4fwd $(DESTDIR)$(PREFIX)/bin/l4fwd
	install -d $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 644 dist/man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 dist/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	sed 's|/usr/bin/|$(PREFIX)/bin/|' deploy/systemd/l4fwd.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/l4fwd.service
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	bin/l4fwd completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/l4fwd

demo:
	$(GO) run ./cmd/l4fwd demo

deps:
	@missing=; for c in $(COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	nginx -V 2>&1 | grep -qE -- '--with-stream( |$$)' || [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing="$$missing libnginx-mod-stream"; \
	if [ -n "$$missing" ]; then \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(PACKAGES); \
		else echo "missing:$$missing; on Debian, as root: apt-get install $(PACKAGES)" >&2; exit 1; fi; \
	fi

clean:
	rm -rf bin dist
