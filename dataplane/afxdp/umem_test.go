package afxdp

import (
	"context"
	"errors"
	"math"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNewUMEMOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    UMEMOptions
		err  error
	}{
		{"defaults", UMEMOptions{Frames: 1}, nil},
		{"4096", UMEMOptions{Frames: 3, FrameSize: 4096, Headroom: 4096 - 257}, nil},
		{"small pages", UMEMOptions{Frames: 5, HugePages: HugePagesOff}, nil},
		{"no frames", UMEMOptions{}, ErrOptions},
		{"negative", UMEMOptions{Frames: -1}, ErrOptions},
		{"too many", UMEMOptions{Frames: math.MaxInt}, ErrOptions},
		{"odd size", UMEMOptions{Frames: 1, FrameSize: 3000}, ErrOptions},
		{"8192", UMEMOptions{Frames: 1, FrameSize: 8192}, ErrOptions},
		{"headroom", UMEMOptions{Frames: 1, Headroom: 2048 - 256}, ErrOptions},
		{"negative headroom", UMEMOptions{Frames: 1, Headroom: -1}, ErrOptions},
		{"huge pages", UMEMOptions{Frames: 1, HugePages: 9}, ErrOptions},
		{"more huge pages than there are", UMEMOptions{Frames: 1 << 30, HugePages: HugePagesOn}, ErrNotSupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, err := NewUMEM(tc.o)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error = %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			defer closeUMEM(t, u)
			if got, want := len(u.Bytes()), u.Frames()*u.FrameSize(); got != want {
				t.Errorf("%d bytes, want %d", got, want)
			}
			if a := address(u.Bytes()); a%4096 != 0 {
				t.Errorf("address %#x is not page aligned", a)
			}
			if u.Backing() == "" {
				t.Error("nothing said about the pages")
			}
			if got, want := u.MaxPacket(), u.FrameSize()-256-tc.o.Headroom; got != want {
				t.Errorf("MaxPacket = %d, want %d", got, want)
			}
			b := u.Bytes()
			b[0], b[len(b)-1] = 1, 2
		})
	}
}

func closeUMEM(t *testing.T, u *UMEM) {
	t.Helper()
	if err := u.Close(); err != nil {
		t.Errorf("closing the UMEM: %v", err)
	}
}

func TestHugeInside(t *testing.T) {
	const smaps = `7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac sd
7f0000400000-7f0000600000 rw-p 00000000 00:00 0 [anon: x]
AnonHugePages:      2048 kB
7f0000600000-7f0000800000 rw-p 00000000 00:00 0
AnonHugePages:         0 kB
garbage
AnonHugePages: many kB
`
	for _, tc := range []struct {
		name     string
		from, to uint64
		want     uint64
	}{
		{"one", 0x7f0000000000, 0x7f0000400000, 4 << 20},
		{"two", 0x7f0000200000, 0x7f0000500000, 6 << 20},
		{"none huge", 0x7f0000600000, 0x7f0000700000, 0},
		{"elsewhere", 0, 0x1000, 0},
	} {
		if got := hugeInside([]byte(smaps), tc.from, tc.to); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestOpenOptions(t *testing.T) {
	u, err := NewUMEM(UMEMOptions{Frames: 8})
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]SocketOptions{
		"RX no power of two":      {RX: 100},
		"negative fill":           {Fill: -1},
		"TX too large":            {TX: 1 << 17},
		"completion smaller":      {TX: 64, Completion: 32},
		"zero copy out of range":  {ZeroCopy: 7},
		"negative busy poll time": {BusyPoll: BusyPoll{Microseconds: -1}},
	} {
		if _, err := u.Open(context.Background(), 1, 0, o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := u.Open(context.Background(), 0, 0, SocketOptions{}); !errors.Is(err, ErrOptions) {
		t.Errorf("interface 0: %v", err)
	}
	closeUMEM(t, u)
	closeUMEM(t, u) // twice is fine
	if _, err := u.Open(context.Background(), 1, 0, SocketOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestErrorsKeepTheErrno(t *testing.T) {
	for _, tc := range []struct {
		got  error
		want error
	}{
		{bindError(unix.EBUSY, true), ErrQueueBusy},
		{bindError(unix.ENODEV, true), ErrNoDevice},
		{bindError(unix.EINVAL, true), ErrNoQueue},
		{bindError(unix.EINVAL, false), ErrNotSupported},
		{bindError(unix.EOPNOTSUPP, false), ErrNotSupported},
		{bindError(unix.EPERM, true), ErrPermission},
		{setupError(unix.EAFNOSUPPORT), ErrNotSupported},
		{setupError(unix.ENOBUFS), ErrMemoryLimit},
		{setupError(unix.ENOMEM), unix.ENOMEM},
	} {
		var errno unix.Errno
		if !errors.Is(tc.got, tc.want) || !errors.As(tc.got, &errno) {
			t.Errorf("%v: want %v and an errno", tc.got, tc.want)
		}
	}
}
