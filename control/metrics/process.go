package metrics

import (
	"bytes"
	"os"
	"runtime"
	rtm "runtime/metrics"
	"strconv"

	"golang.org/x/sys/unix"
)

// processTotals are what every Prometheus client says of its process, under the names
// that dashboards know. What the kernel does not tell is left out.
var processTotals = []family{
	{name: "process_cpu_seconds_total", kind: counter,
		help: "Processor time of the process, user and system. A worker that polls without sleep takes all of its core.",
		emit: func(w *writer, _ *Sample) {
			var u unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err == nil {
				w.number(float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9)
			}
		}},
	{name: "process_resident_memory_bytes", kind: gauge, help: "Memory of the process that is in RAM.",
		emit: func(w *writer, _ *Sample) {
			b, err := os.ReadFile("/proc/self/statm")
			if f := bytes.Fields(b); err == nil && len(f) > 1 {
				if n, err := strconv.ParseUint(string(f[1]), 10, 64); err == nil {
					w.count(n * uint64(os.Getpagesize()))
				}
			}
		}},
	{name: "process_open_fds", kind: gauge, help: "Open file descriptors.",
		emit: func(w *writer, _ *Sample) {
			if l, err := os.ReadDir("/proc/self/fd"); err == nil {
				w.count(uint64(len(l)))
			}
		}},
	{name: "process_start_time_seconds", kind: gauge, help: "When the daemon started, in seconds since 1970.",
		emit: func(w *writer, s *Sample) { w.number(float64(s.Started.UnixMilli()) / 1e3) }},
	{name: "go_goroutines", kind: gauge, help: "Goroutines.",
		emit: func(w *writer, _ *Sample) { w.count(uint64(runtime.NumGoroutine())) }},
	{name: "go_memstats_heap_alloc_bytes", kind: gauge, help: "Bytes of the Go heap in use. Packets and flows lie outside.",
		emit: func(w *writer, _ *Sample) {
			v := []rtm.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
			if rtm.Read(v); v[0].Value.Kind() == rtm.KindUint64 {
				w.count(v[0].Value.Uint64())
			}
		}},
}
