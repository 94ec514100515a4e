// Package liveframes is the load generator of the live benchmarks: 64-byte UDP
// packets, made in the kernel by an XDP program that BPF_PROG_RUN runs in a loop
// with BPF_F_TEST_XDP_LIVE_FRAMES, and sent to a veth by bpf_redirect. One core
// makes several million a second, ten times what a packet socket gives, so that
// the forwarder is what is measured. [Sink] is the other end: it counts and drops
// what arrives, at the same low cost for every forwarder.
//
// It must never know what forwards the packets. It needs root and Linux 6.6 (live
// frames 5.18, TCX 6.6).
//
// # Frames are recycled
//
// The kernel makes as many pages as a batch has frames and uses them again and
// again, with whatever the receivers wrote into them: addresses after NAT, MACs
// after routing. So the program writes all 60 bytes of every frame.
//
// # The other end of the veth
//
// A veth takes frames from XDP only if its peer has NAPI, which it has while an
// XDP program is attached to it or GRO is on. Without, all frames are lost and
// nothing says so. A forwarder in XDP brings its program; for one that has none
// there is [AttachPass].
//
// # Calls
//
// Every BPF_PROG_RUN makes its pages anew and takes them apart at its end, which
// with short calls takes most of the time: [Repeat] is millions. Only a signal
// ends a call early. Stop sends SIGURG, which Go's runtime uses for preemption and
// ignores when it is meant for nobody, until the thread has seen it. The runtime's
// own signals end calls too; the generator then just begins another.
//
// # Which core works
//
// The frames' way through the veth's NAPI happens on the core of the generator,
// within its system call, unless the peer's NAPI is threaded. The generator does
// not wait for anybody: it offers what the core can make, and what the forwarder
// has no room for is lost in the veth or at the AF_XDP socket. Sent is therefore
// what was offered, not what the forwarder saw.
package liveframes
