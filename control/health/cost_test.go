package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serverVariable makes the test binary a server, so that what servers cost is not
// counted: it accepts, and answers whatever is sent, until its input ends.
const serverVariable = "L4FWD_TEST_HEALTH_SERVER"

func init() {
	if os.Getenv(serverVariable) == "" {
		return
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if n, _ := c.Read(make([]byte, 1024)); n > 0 {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
				}
				_ = c.Close()
			}()
		}
	}()
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// cpu is what this process has used of it, outside and inside the kernel.
func cpu() (user, kernel time.Duration) {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano()), time.Duration(r.Stime.Nano())
}

// BenchmarkTenThousand checks 10,000 backends on loopback every 2 s and says how many
// cores that costs. The kernel's half of the servers' work is in it: on loopback who
// sends also receives. Each iteration is a second.
func BenchmarkTenThousand(b *testing.B) {
	for _, kind := range []Kind{TCP, HTTP} {
		b.Run(kind.String(), func(b *testing.B) { measure(b, kind) })
	}
}

func measure(b *testing.B, kind Kind) {
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), serverVariable+"=1")
	in, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = server.Wait()
	}()
	var port uint16
	if _, err := fmt.Fscan(out, &port); err != nil {
		b.Fatal(err)
	}
	check := usual()
	check.Kind, check.HTTP = kind, HTTPCheck{Method: "GET", Path: "/", Statuses: statuses([2]int{200, 399})}
	var list []Target
	for i := range 10000 {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), port)
		list = append(list, Target{Key: Key{"web", a}, Address: a, Check: check})
	}
	var up atomic.Int64
	e := New(Options{OnChange: func(events []Event) {
		for _, one := range events {
			if one.To == Up {
				up.Add(1)
			} else {
				up.Add(-1)
			}
		}
	}})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	e.Set(list)
	time.Sleep(3 * time.Second)
	b.ResetTimer()
	began := time.Now()
	user, kernel := cpu()
	for range b.N {
		time.Sleep(time.Second)
	}
	took := time.Since(began)
	user2, kernel2 := cpu()
	user, kernel = user2-user, kernel2-kernel
	b.StopTimer()
	cancel()
	<-done
	b.ReportMetric((user+kernel).Seconds()/took.Seconds(), "cores")
	b.ReportMetric(kernel.Seconds()/took.Seconds(), "cores-in-kernel")
	b.ReportMetric(float64(up.Load()), "up")
	b.ReportMetric(0, "ns/op")
}
